"""Search for the values of each method's options, on questions that are never scored in a comparison."""
