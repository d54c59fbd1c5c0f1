"""How much a caller may: which counters a request meets, and what its end means for them. The counting is the store's."""
