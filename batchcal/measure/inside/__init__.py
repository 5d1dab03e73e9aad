"""Code that runs inside a measuring child."""
