"""How bytes reach fal: an HTTP/1.1 client that sends what it is given and nothing else."""
