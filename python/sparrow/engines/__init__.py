"""sparrow's drafter inside inference engines that batch continuously: the engine-neutral core, and one adapter each."""
