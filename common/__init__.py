"""What coordinator and site must agree on: values and pure functions, no loops over the network."""
