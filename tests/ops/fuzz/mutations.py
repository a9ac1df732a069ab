"""One thing wrong with a call that was right: what kinds of wrong there are, and how each is made."""

import inspect
from collections.abc import Callable

import torch
from torch import Tensor

import sparrow_ext
from tests.ops.fuzz.calls import Call, Draw

HUGE = [-1, -(2**31), 2**31 - 1, 2**31, 2**32, 2**58 - 129, 2**62, 2**63 - 1, -(2**63), 2**63, 10**30]
KINDS_OF_NOTHING = [None, [], [1], "text", 2.5, object(), {"a": 1}, 1 + 2j]
ENDS = {torch.int32: 2**31, torch.int64: 2**63}


class NotHere(Exception):
    """The mutation does not apply to this call."""


def tensors(call: Call) -> list[tuple[str, Callable[[], Tensor], Callable[[object], None]]]:
    """(name, get, set) of every tensor argument, those inside lists too."""
    found = []
    for name, value in call.arguments.items():
        if isinstance(value, Tensor):
            found.append((name, lambda n=name: call.arguments[n], lambda x, n=name: call.arguments.update({n: x})))
        elif isinstance(value, list):
            for i in [i for i, one in enumerate(value) if isinstance(one, Tensor)]:
                found.append((f"{name}[{i}]", lambda v=value, i=i: v[i], lambda x, v=value, i=i: v.__setitem__(i, x)))
    return found


def one_tensor(call: Call, draw: Draw, keep: Callable[[Tensor], bool] = lambda t: True):
    possible = [entry for entry in tensors(call) if keep(entry[1]())]
    if not possible:
        raise NotHere
    return draw.choice(possible)


def number(call: Call, draw: Draw) -> str:
    """A length, window, size or count from anywhere."""
    parameters = inspect.signature(getattr(sparrow_ext, call.op)).parameters
    names = [n for n, p in parameters.items() if p.annotation in (int, int | None, float | None)]
    if not names:
        raise NotHere
    name = draw.choice(names)
    call.arguments[name] = draw.choice(HUGE)
    return name


def kind(call: Call, draw: Draw) -> str:
    """No tensor at all, or no number."""
    name = draw.choice(list(call.arguments))
    call.arguments[name] = draw.choice(KINDS_OF_NOTHING)
    return name


def device(call: Call, draw: Draw) -> str:
    if len(tensors(call)) < 2:
        raise NotHere  # all on meta: shapes only
    name, get, put = one_tensor(call, draw)
    put(get().to("meta"))
    return name


def dtype(call: Call, draw: Draw) -> str:
    name, get, put = one_tensor(call, draw)
    put(get().to(draw.choice([torch.float64, torch.int8, torch.complex64, torch.bool, torch.int32, torch.float16])))
    return name


def dims(call: Call, draw: Draw) -> str:
    name, get, put = one_tensor(call, draw)
    x = get()
    put(
        draw.choice(
            [lambda: x[None], lambda: x.reshape(-1), lambda: x.reshape(-1)[:0], lambda: torch.zeros((), dtype=x.dtype)]
        )()
    )
    return name


def size(call: Call, draw: Draw) -> str:
    """One dimension longer, shorter or gone, or as long as 64 bits say."""
    name, get, put = one_tensor(call, draw, lambda t: t.dim() > 0)
    x = get()
    d = draw.integer(0, x.dim() - 1)
    far = draw.choice([2**31, 2**40, 2**62])

    def endless() -> Tensor:
        shape = [1 if i == d else n for i, n in enumerate(x.shape)]
        return torch.zeros(shape, dtype=x.dtype).expand([far if i == d else n for i, n in enumerate(x.shape)])

    def empty() -> Tensor:  # far elements beside none
        shape = [far if i == d else 0 for i in range(x.dim())]
        return torch.empty(shape if x.dim() > 1 else [0], dtype=x.dtype)

    options = [
        lambda: torch.cat((x, x), d),
        lambda: x.narrow(d, 0, x.shape[d] // 2),
        lambda: x.narrow(d, 0, 0),
        empty,
        endless,
    ]
    try:
        put(draw.choice(options)())
    except (RuntimeError, OverflowError):  # more than torch itself can express
        raise NotHere from None
    return name


def stride(call: Call, draw: Draw) -> str:
    name, get, put = one_tensor(call, draw, lambda t: t.dim() > 0 and t.numel() > 1)
    x = get()
    options = [
        lambda: x.flip(0).T.contiguous().T if x.dim() == 2 else x.transpose(0, -1).contiguous().transpose(0, -1),
        lambda: torch.stack((x, x), -1)[..., 0],
        lambda: x[:1].expand(x.shape),
        lambda: x[..., :1].expand(x.shape),
    ]
    put(draw.choice(options)())
    return name


def alias(call: Call, draw: Draw) -> str:
    """A written argument that shares bytes with another argument, or with itself."""
    everyone = tensors(call)
    written = [e for e in everyone if e[0].split("[")[0] in call.written and e[1]().numel() > 0]
    if not written:
        raise NotHere
    name, get, put = draw.choice(written)
    other, other_get, other_put = draw.choice([e for e in everyone if e[1]().numel() > 0])
    x, y = get(), other_get()
    if other == name:
        if x.numel() < 2:
            raise NotHere
        put(x.reshape(-1)[:1].expand(x.numel()).view(x.shape))
        return name
    room = (x.numel() * x.element_size() + y.numel() * y.element_size() + 64) // 16 * 16 + 64
    buffer = torch.zeros(room, dtype=torch.uint8)
    shift = draw.integer(0, (y.numel() * y.element_size() - 1) // 16) * 16  # x begins inside y
    place = {}
    for which, t, at in (("x", x, shift), ("y", y, 0)):
        view = buffer[at : at + t.numel() * t.element_size()].view(t.dtype).view(t.shape)
        place[which] = view.copy_(t)
    put(place["x"])
    other_put(place["y"])
    return name


def storage(call: Call, draw: Draw) -> str:
    """Memory that was freed behind the tensor's back, as sharded parameters are."""
    name, get, put = one_tensor(call, draw, lambda t: t.numel() > 0)
    x = get().clone()
    x.untyped_storage().resize_(draw.choice([0, x.untyped_storage().nbytes() // 2]))
    put(x)
    return name


def layout(call: Call, draw: Draw) -> str:
    name, get, put = one_tensor(
        call, draw, lambda t: t.dim() == 2 and t.is_floating_point() and t.dtype != torch.float16
    )
    put(get().nan_to_num().to_sparse())
    return name


def value(call: Call, draw: Draw) -> str:
    """An index, length or id that is out of any range."""
    name, get, put = one_tensor(call, draw, lambda t: t.dtype in ENDS and t.numel() > 0)
    x = get().clone()
    end = ENDS[x.dtype]
    x.view(-1)[draw.integer(0, x.numel() - 1)] = draw.choice([-end, end - 1, -1, -2, 129, 2**16])
    put(x)
    return name


MUTATIONS = {f.__name__: f for f in (number, kind, device, dtype, dims, size, stride, alias, storage, layout, value)}
# What may also be right: a value inside its range, a shape that fits, a stride that the operator takes.
MUST_BE_REFUSED = {"device", "storage", "layout"}
