"""Everything that proposes tokens: the drafter of text alone, its rivals, and the protocol the loop knows them by."""
