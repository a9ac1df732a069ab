"""Target models: adapters to unmodified transformers models, and small ones built without a download."""
