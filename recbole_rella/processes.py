"""Several processes of one run, as torchrun or accelerate launch start them: who does what, over torch.distributed.

Decisions:
- Every process reads the same rows in the same order, and computes some of the forward passes of each batch. No row is padded,
  left out or counted twice, and what one process would compute is what all compute together.
- Adapters are small: every process has all of them, and their gradients are added up. The LLM's own weights are frozen: every
  process has all of them too, or a part (llm_shard), gathered layer by layer while they are needed (FSDP).
- The first process alone writes. What it has read or decided is sent to the others.

With one process each function here does what it says for one, and nothing is started.
"""

import logging
import os
import sys
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist

from recbole_rella.errors import RellaError

logger = logging.getLogger(__name__)

# Others wait for the first one while it pretrains or encodes: hours. A process that dies is no reason to wait, as the launcher
# ends the others.
_PATIENCE = timedelta(days=7)
# What torchrun and accelerate launch set. Clusters may set some of them for a single process.
_LAUNCHED = {"WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"}


class ProcessError(RellaError):
    """What was asked for cannot be done by several processes, or by so many."""


def start():
    """Join the processes of this run, where a launcher started several (its variables say so). Harmless twice.

    Raises:
        ProcessError: there are more processes on this machine than GPUs, or accelerate was told to use DeepSpeed.
    """
    if not _LAUNCHED <= set(os.environ) or os.environ["WORLD_SIZE"] == "1" or dist.is_initialized():
        return
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true":
        raise ProcessError("accelerate: expected FSDP (--use_fsdp) for an LLM that one GPU does not hold, found DeepSpeed.")
    if torch.cuda.is_available():
        place, gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if place >= gpus:
            raise ProcessError(f"nproc_per_node: expected at most one process a GPU, {gpus} here, found process {place + 1}.")
        torch.cuda.set_device(place)
    dist.init_process_group(timeout=_PATIENCE)  # gloo for the tensors of CPUs, nccl for those of GPUs


def launched_with_fsdp():
    """Whether accelerate launch was told to use FSDP (--use_fsdp, or its configuration file)."""
    return os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"


def launch(per_node, world_size=-1, offset=0, ip="localhost", port=5678):
    """Run this command again in several processes, by torch.distributed.run (torchrun); does not return.

    Args:
        per_node (int): processes on this machine.
        world_size (int): processes on all machines, each of which has as many; -1 for those of this machine.
        offset (int): processes on the machines before this one.
        ip (str), port (int): where the first machine listens.

    Raises:
        ProcessError: the numbers do not fit.
    """
    nodes = ["--standalone"]
    if world_size > per_node:
        if world_size % per_node or offset % per_node:
            raise ProcessError(
                f"world_size, group_offset: expected multiples of nproc ({per_node}), found {world_size} and {offset}."
            )
        nodes = [f"--nnodes={world_size // per_node}", f"--node_rank={offset // per_node}"]
        nodes += [f"--master_addr={ip}", f"--master_port={port}"]
    # Behind -- nothing is taken for an option of torch.distributed.run.
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={per_node}", *nodes, "--", *sys.argv]
    os.execv(sys.executable, command)


def end():
    """Leave the others, at the end of a run that went well."""
    if dist.is_initialized():
        dist.destroy_process_group()


def count():
    """How many processes this run has."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank():
    """The number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def is_first():
    """Whether this is the process that writes."""
    return rank() == 0


@contextmanager
def first_alone():
    """The first process goes through this context before the others do, which find in the caches what it made."""
    if not is_first():
        _meet()
    yield
    if is_first():
        _meet()


def _meet():
    if dist.is_initialized():
        dist.all_reduce(torch.zeros(1))


def from_first(make):
    """What `make()` returns in the first process, in every process.

    Args:
        make (callable): no arguments, called in the first process alone; returns what pickle takes.
    """
    if not dist.is_initialized():
        return make()
    value = [make() if is_first() else None]
    dist.broadcast_object_list(value, src=0, device=torch.device("cpu"))
    return value[0]


def add_up(tensors):
    """Replace tensors by their sums over all processes, in place.

    Args:
        tensors (list of torch.Tensor): the same shapes, and one dtype and device, in every process.
    """
    if not dist.is_initialized() or not tensors:
        return
    joined = torch.cat([tensor.detach().flatten() for tensor in tensors])
    dist.all_reduce(joined)
    with torch.no_grad():
        for tensor, total in zip(tensors, joined.split([tensor.numel() for tensor in tensors])):
            tensor.copy_(total.view_as(tensor))


def share(sizes, in_step=False):
    """Which forward passes are this process's: the largest first, each to the process that has least to do so far.

    Args:
        sizes (list of int): what each pass costs, the same in every process.
        in_step (bool): whether all processes must make as many passes (those of a divided LLM exchange weights in each): who has
            fewer then repeats one, which does not count.

    Returns:
        list of tuple: place of the pass in `sizes`, and whether it counts.
    """
    loads, shares = [0] * count(), [[] for _ in range(count())]
    for place in sorted(range(len(sizes)), key=lambda place: (-sizes[place], place)):
        least = loads.index(min(loads))
        loads[least] += sizes[place]
        shares[least].append(place)
    mine = [(place, True) for place in sorted(shares[rank()])]
    if in_step:
        mine += [(0, False)] * (max(map(len, shares)) - len(mine))
    return mine


def divide(llm, device):
    """Divide the weights of a frozen LLM among the processes: a layer is whole only while it computes (PyTorch's FSDP).

    Adapters that are put on it afterwards are not divided.

    Args:
        llm (transformers.PreTrainedModel): frozen, on the CPU; changed in place, and moved to `device`.
        device (torch.device): of this process.

    Returns:
        transformers.PreTrainedModel: the same.
    """
    from torch.distributed.device_mesh import init_device_mesh  # FSDP takes a second to import, and few runs need it
    from torch.distributed.fsdp import fully_shard

    logger.info("The weights of the LLM are divided among %d processes.", count())
    mesh = init_device_mesh(device.type, (count(),))
    for layer in llm.get_decoder().layers:
        fully_shard(layer, mesh=mesh)
    return fully_shard(llm, mesh=mesh).to(device)


@contextmanager
def whole(llm):
    """Within this context the embedding of an LLM and its head, which `divide` may have divided, are whole in each process.

    Args:
        llm (transformers.PreTrainedModel): without adapters around it.
    """
    divided = is_divided(llm)
    if divided:
        llm.unshard()
    try:
        yield
    finally:
        if divided:
            llm.reshard()


def is_divided(llm):
    """Whether `divide` divided the weights of a model."""
    if not dist.is_initialized():
        return False
    from torch.distributed.tensor import DTensor

    return any(isinstance(parameter, DTensor) for parameter in llm.parameters())
