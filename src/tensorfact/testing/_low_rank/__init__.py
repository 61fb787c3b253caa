"""The promises of a low-rank routine: about its result, the matrices it serves, and its manners."""
