"""Tables and pictures of an evaluation, made from its JSON alone."""
