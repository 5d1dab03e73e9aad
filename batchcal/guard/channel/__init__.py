"""Messages between parent, zygote and children."""
