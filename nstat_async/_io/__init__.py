"""Input and output: the pump, sockets, recordings, the host's facts."""
