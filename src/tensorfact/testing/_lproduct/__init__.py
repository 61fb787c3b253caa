"""The promises of a tensor-tensor product, one function each."""
