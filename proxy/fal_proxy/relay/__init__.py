"""How bytes and endings travel between the caller and upstream, once everything has been decided."""
