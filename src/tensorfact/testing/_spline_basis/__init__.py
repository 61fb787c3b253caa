"""The promises of a B-spline basis, and the knots and points they are searched over."""
