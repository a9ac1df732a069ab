"""vLLM without speculation, once for all tests: an engine takes seconds to start."""

import pytest

from tests.vllm.cases import CHATS, SINGLE, run, tokens


@pytest.fixture(scope="session")
def without(tmp_path_factory):
    """One engine without a drafter: its answers to CASES, token ids, and to CHATS, text."""
    single, *chats = run(tmp_path_factory.mktemp("plain"), [SINGLE, *CHATS])
    assert sum(map(len, tokens(single))) > 300 and not single["metrics"].get("drafts")
    return tokens(single), [one["text"] for one in chats]
