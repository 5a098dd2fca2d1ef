"""One trial: the network, the loop, and the steps from settings to a record."""
