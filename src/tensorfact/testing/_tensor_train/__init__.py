"""The promises of a TT-SVD routine: about its result, the tensors it serves, and its manners."""
