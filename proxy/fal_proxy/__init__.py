"""fal-proxy: lets a browser app use fal.ai without ever holding the fal key."""
