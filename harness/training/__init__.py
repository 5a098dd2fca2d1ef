"""One trial: the network, the loop, and the way from settings to a record."""
