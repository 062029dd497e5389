"""What people have measured of engines, read into one form."""
