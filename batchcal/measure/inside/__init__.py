"""What runs inside a measuring child."""
