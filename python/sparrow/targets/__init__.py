"""The only part of sparrow that knows transformers: adapters over unmodified models, their cache, their processors."""
