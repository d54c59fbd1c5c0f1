"""What stands between a caller's socket and HTTP: who may connect, how long things may take, how much may wait."""
