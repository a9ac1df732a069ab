"""One user of a model at a time, and the model left as it was found."""

import contextlib
import threading
import weakref
from collections.abc import Iterator
from contextlib import AbstractContextManager

from torch import nn

# Beside the models, not in them: they stay as they are for pickle and deepcopy, and a lock goes with its model.
_locks: weakref.WeakKeyDictionary[nn.Module, AbstractContextManager[bool]] = weakref.WeakKeyDictionary()
_registry = threading.Lock()


def lock_of(model: nn.Module) -> AbstractContextManager[bool]:
    """The lock that everything of sparrow holds while it runs this model; the same thread may take it again.

    It knows nothing of calls of the model or of transformers' own generate: those are the caller's to keep apart.
    """
    with _registry:
        return _locks.setdefault(model, threading.RLock())


@contextlib.contextmanager
def borrowed(model) -> Iterator[None]:
    """Holds the model's lock, in evaluation mode; training flags are as before afterwards, in any case.

    M-RoPE's offset (rope_deltas) is as before after an exception. Else it stays what the prompt made of it, as after
    transformers' generate: the next one needs it to go on from the returned cache, and one that starts anew makes its
    own. (Attention and linear layers: see Target.verifying.)
    """
    with lock_of(model):
        training = [module for module in model.modules() if module.training]
        has_deltas, deltas = hasattr(model.model, "rope_deltas"), getattr(model.model, "rope_deltas", None)
        try:
            model.eval()
            yield
        except BaseException:
            if has_deltas:
                model.model.rope_deltas = deltas
            raise
        finally:
            for module in training:
                module.training = True
