"""sparrow's drafter inside inference engines that batch continuously: the engine-neutral core, and one adapter each."""

PROPOSER = "sparrow.engines.vllm.SparrowProposer"  # what vLLM is told to load as "model" of its method custom_class
