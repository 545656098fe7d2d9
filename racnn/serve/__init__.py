"""A page to drop a photo on, and the address that answers programs."""
