"""Loading the model to train and writing it back in Hugging Face format, safetensors only.

Saving streams: block after block of the model is brought to the names, shapes and dtypes of the base's files and
written tensor by tensor. Neither ``save_pretrained`` nor safetensors' own writer does that. The one rearranges the
weights of all blocks before it writes the first (experts are stored one by one and computed as one tensor); the
other wants every tensor of a file in the host's memory at once, in its stored dtype. So the safetensors files are
laid out here: a header, and the tensors' bytes (https://huggingface.co/docs/safetensors/index#format). Names and
shapes come from transformers' own reversal of what it did to load the model, the split into files from
huggingface_hub.

Memory beyond the model: one stored tensor; and where transformers rearranges weights to load them, those of one
block (the gate and up projections of its experts, as a rule). Neither grows with the number of blocks. (Of the 173
families of transformers 5.23 that can be built from a default configuration, all are reversed block by block.)
"""

import copy
import logging
import math
import os
import re
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import torch
from huggingface_hub import snapshot_download, split_torch_state_dict_into_shards
from huggingface_hub.errors import HFValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    Concatenate,
    ConversionOps,
    MergeModulelist,
    Transpose,
    WeightConverter,
    WeightRenaming,
    rename_source_key,
    revert_weight_conversion,
)
from transformers.distributed import DistributedConfig
from transformers.modeling_utils import remove_tied_weights_from_state_dict
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, is_flash_attn_2_available

from osft.errors import MissingPathError, TrainingError, one_line
from osft.subspace.attach import plain_state
from osft.subspace.exchange import gather
from osft.workspace import replace_directory, sync_directory, write_json

logger = logging.getLogger(__name__)

HUB_FILES = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja")
TOKENIZER_FILES = (
    "tokenizer*", "special_tokens_map.json", "added_tokens.json", "chat_template*", "vocab*", "merges.txt",
    "*.model", "preprocessor_config.json", "processor_config.json",
)  # fmt: skip

# Floats of eight bits and less are left out: such files hold scales beside the values, and a cast would lose them.
SAFETENSORS_DTYPES = {
    "BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F64": torch.float64,
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "I16": torch.int16, "I32": torch.int32,
    "I64": torch.int64,
}  # fmt: skip
SAFETENSORS_KINDS = {dtype: kind for kind, dtype in SAFETENSORS_DTYPES.items()}
# What the Hub advises for one file; a larger weight has a file of its own.
MAX_FILE_BYTES = 5 * 10**9
# The reference writer pads the header so that the first tensor is aligned for every dtype.
HEADER_ALIGNMENT_BYTES = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadedModel:
    """A model in the precision it is trained in, and the precision that each weight is stored in."""

    model: PreTrainedModel
    stored_dtypes: Mapping[str, torch.dtype]
    """By name of the weight in the files, floating weights only."""

    @property
    def commonest_dtype(self) -> torch.dtype:
        """What most weights are stored in, and so what the configuration names."""
        return Counter(self.stored_dtypes.values()).most_common(1)[0][0]

    def stored_dtype(self, name: str) -> torch.dtype:
        """Return the dtype of the floating weight ``name``; the commonest one for a name that the files lack."""
        # Files of a model without its head, as GPT-2's, lack the prefix that the model with it has.
        without_prefix = name.removeprefix(f"{self.model.base_model_prefix}.")
        fallback = self.stored_dtypes.get(without_prefix, self.commonest_dtype)
        return self.stored_dtypes.get(name, fallback)


def load_model(model_path: str, device: torch.device, world_size: int = 1) -> LoadedModel:
    """Load a causal language model to train on ``device``; every process of the run must call this.

    A model stored in bfloat16 throughout stays bfloat16 on a GPU. Anything else is computed in float32, which holds
    the stored values exactly, so that what is not trained is written back as it was. The weights go to ``device`` one
    by one; the host never holds the whole model for a GPU. Of several processes each reads its rows of every weight
    and nothing else.

    Args:
        model_path: local folder or Hugging Face id.
        device: of this process.
        world_size: processes of the run.

    Raises:
        MissingPathError: if ``model_path`` is neither a folder nor a model that the Hub or its cache has.
        TrainingError: if the folder does not hold a whole causal language model with safetensors weights.
    """
    try:
        folder = Path(model_path)
        if not folder.is_dir():
            folder = Path(snapshot_download(model_path, allow_patterns=list(HUB_FILES)))
        stored_dtypes = read_dtypes(folder)
        all_bfloat16 = set(stored_dtypes.values()) == {torch.bfloat16}
        dtype = torch.bfloat16 if device.type == "cuda" and all_bfloat16 else torch.float32
        # A model that is to be trained in one process has it as it is; else transformers gives each its rows.
        placement: dict[str, Any] = {"device_map": {"": device}}
        if world_size > 1:
            parts = _count_parts(folder, stored_dtypes, world_size)
            placement = {
                "distributed_config": DistributedConfig(fsdp_size=parts, dp_replicate_size=world_size // parts)
            }
        # Typed as if it returned a model alone.
        model_and_loading: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            use_safetensors=True,
            output_loading_info=True,
            **placement,
        )
    except HFValidationError as error:
        raise MissingPathError(f"model_path '{model_path}' is neither a folder nor a Hugging Face id.") from error
    except (OSError, SafetensorError) as error:
        reason = one_line(error)
        if Path(model_path).is_dir():
            raise TrainingError(f"model_path '{model_path}' cannot be loaded: {reason}.") from error
        raise MissingPathError(
            f"model_path '{model_path}' is neither a folder nor a reachable Hugging Face model: {reason}."
        ) from error
    except ValueError as error:
        raise TrainingError(f"model_path '{model_path}' is not a causal language model: {one_line(error)}.") from error
    model, loading = model_and_loading
    # transformers makes up at random what it does not find.
    if absent := sorted([*loading["missing_keys"], *(key for key, *_ in loading["mismatched_keys"])]):
        raise TrainingError(f"model_path '{model_path}' lacks weights of its own model: {', '.join(absent[:5])}.")
    if dtype == torch.bfloat16 and is_flash_attn_2_available():
        use_flash_attention(model)
    return LoadedModel(model=model, stored_dtypes=stored_dtypes)


def _count_parts(folder: Path, stored_names: Iterable[str], world_size: int) -> int:
    """Return into how many parts transformers is to cut the weights: as many as processes, if that goes well.

    It rearranges some weights while it loads them, and does so to each process's rows. Where that is not the same as
    doing it to the whole, every process has all. Experts that are stored one by one it joins, and fails in a process
    that gets none of them; then several processes have the same part.
    """
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    rearranged = _rearranged_weights(empty, stored_names)
    operations = [operation for converter in rearranged.values() for operation in converter.operations]
    if not all(_keeps_rows(operation) for operation in operations):
        return 1
    stacks = {
        len(empty.get_parameter(name))
        for name, converter in rearranged.items()
        if any(isinstance(operation, MergeModulelist) for operation in converter.operations)
    }
    for parts in range(world_size, 1, -1):
        if world_size % parts == 0 and all(math.ceil(size / parts) * (parts - 1) < size for size in stacks):
            return parts
    return 1


def _rearranged_weights(empty: PreTrainedModel, stored_names: Iterable[str]) -> dict[str, WeightConverter]:
    """Return what transformers does to the values of the weights, by their names in the model; renaming is left out."""
    transforms = get_model_conversion_mapping(empty)
    renamings = [each for each in transforms if isinstance(each, WeightRenaming)]
    converters = [each for each in transforms if isinstance(each, WeightConverter)]
    by_pattern = {pattern: converter for converter in converters for pattern in converter.source_patterns}
    state = empty.state_dict()
    rearranged = {}
    for stored_name in stored_names:
        name, pattern = rename_source_key(stored_name, renamings, converters, empty.base_model_prefix, state)
        if pattern is not None and name in state:
            rearranged[name] = by_pattern[pattern]
    return rearranged


def _keeps_rows(operation: ConversionOps) -> bool:
    """Return whether an operation on some rows of a weight, or on some experts, gives those of the result."""
    if isinstance(operation, MergeModulelist):
        return operation.dim == 0
    if isinstance(operation, Concatenate):
        return operation.dim != 0
    return isinstance(operation, Transpose) and 0 not in (operation.dim0, operation.dim1)


def use_flash_attention(model: PreTrainedModel) -> None:
    """Let ``model`` compute its attention with flash-attn, if its family and this machine can; else say why not."""
    before = model.config.get_text_config()._attn_implementation
    try:
        model.set_attn_implementation("flash_attention_2")
    except (ImportError, OSError, ValueError) as error:
        model.set_attn_implementation(before)
        logger.info("%s: no flash-attn, but %s (%s)", type(model).__name__, before, one_line(error))


def read_dtypes(folder: Path) -> dict[str, torch.dtype]:
    """Return the dtype of every floating weight from the headers of the safetensors files."""
    dtypes: dict[str, torch.dtype] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as weights:
            for name in weights.keys():  # noqa: SIM118 it is no dict
                dtype = SAFETENSORS_DTYPES.get(weights.get_slice(name).get_dtype())
                if dtype is not None and dtype.is_floating_point:
                    dtypes[name] = dtype
    if not dtypes:
        raise TrainingError(f"{folder}: holds no safetensors weights. Save the model with save_pretrained.")
    return dtypes


def save_model(
    loaded: LoadedModel,
    model_path: str,
    target: Path,
    *,
    writes: bool = True,
    entered: Callable[[str], None] = lambda _: None,
    max_file_bytes: int = MAX_FILE_BYTES,
) -> None:
    """Write the model with its merged weights, and the base model's tokenizer, to the folder ``target``.

    The folder appears under its name when it is whole and on disk. The model goes on training unchanged. Every process
    must call this: a model that is spread over them is gathered block by block.

    Args:
        loaded: a model, with trained weights attached or without.
        model_path: where it was loaded from; the tokenizer's files are copied from there, byte for byte.
        target: the folder to write, replaced if it exists.
        writes: whether this is the process that writes; the others only give what they have.
        entered: is told of each block when it begins.
        max_file_bytes: above this the weights are split into several files with an index.

    Raises:
        TrainingError: if it cannot be written.
    """
    if not writes:
        for _ in _whole_blocks(*_plan_blocks(loaded.model)[:2], entered):
            pass
        return
    partial = target.with_name(f".{target.name}.partial")
    if partial.exists():
        shutil.rmtree(partial)
    try:
        partial.mkdir(parents=True)
        _write_configuration(loaded, partial)
        _write_weights(loaded, partial, max_file_bytes, entered)
        copy_tokenizer(model_path, partial)
        _bring_to_disk(partial)
        replace_directory(partial, target)
    except OSError as error:
        # Half a model on a volume that is full would keep it full.
        shutil.rmtree(partial, ignore_errors=True)
        raise TrainingError(f"{target}: the model cannot be saved ({one_line(error)}). Make room there.") from error
    logger.info("saved %s", target)


def _bring_to_disk(folder: Path) -> None:
    for path in folder.iterdir():
        # Copied files keep the mode of the base's; a pod under another user id of the same group must read them.
        path.chmod(0o664)
        with path.open("rb") as file:
            os.fsync(file.fileno())
    sync_directory(folder)


def _write_configuration(loaded: LoadedModel, folder: Path) -> None:
    """Write what ``save_pretrained`` writes beside the weights; the dtype is the stored one, not the computed one."""
    config = copy.deepcopy(loaded.model.config)
    config.dtype = loaded.commonest_dtype
    config.architectures = [type(loaded.model).__name__]
    config.save_pretrained(folder)
    if loaded.model.can_generate():
        loaded.model.generation_config.save_pretrained(folder)


def _write_weights(loaded: LoadedModel, folder: Path, max_file_bytes: int, entered: Callable[[str], None]) -> None:
    """Write all weights as safetensors, each in the name, shape and dtype of the base's files; tied ones once."""
    state, blocks, shapes = _plan_blocks(loaded.model)
    planned = {
        name: tensor.to(loaded.stored_dtype(name)) if tensor.is_floating_point() else tensor
        for name, tensor in shapes.items()
    }
    split = split_torch_state_dict_into_shards(planned, max_shard_size=max_file_bytes)
    with ExitStack() as stack:
        files = {
            file_name: stack.enter_context(_WeightsFile(folder / file_name, {name: planned[name] for name in names}))
            for file_name, names in split.filename_to_tensors.items()
        }
        file_of = {name: files[file_name] for name, file_name in split.tensor_to_filename.items()}
        for block in _whole_blocks(state, blocks, entered):
            _write_block(loaded.model, block, file_of)
    if split.is_sharded:
        write_json(
            folder / SAFE_WEIGHTS_INDEX_NAME, {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        )


def _plan_blocks(model: PreTrainedModel) -> tuple[dict[str, Tensor], list[list[str]], dict[str, Tensor]]:
    """Return the weights by their names in the model, tied ones once, and what :func:`_plan_reversal` makes of them."""
    state = plain_state(model)
    if any(isinstance(tensor, DTensor) for tensor in state.values()):
        # By name: what a process has of a weight may be nothing, and then shares its memory with everything.
        state = {name: tensor for name, tensor in state.items() if name not in model.all_tied_weights_keys}
    else:
        state = remove_tied_weights_from_state_dict(state, model)
    return state, *_plan_reversal(model, state)


def _whole_blocks(
    state: Mapping[str, Tensor], blocks: Iterable[Iterable[str]], entered: Callable[[str], None]
) -> Iterator[dict[str, Tensor]]:
    """Yield the weights of each block, gathered from all processes."""
    for number, block in enumerate(blocks, start=1):
        entered(f"saving block {number} of the model")
        yield {name: gather(state[name]) for name in block}


def _plan_reversal(model: PreTrainedModel, state: Mapping[str, Tensor]) -> tuple[list[list[str]], dict[str, Tensor]]:
    """Return which weights can be brought to their stored form together, and the stored form of all.

    It is tried with tensors that have a shape and no values: block by block must give what all at once gives. Where
    it does not, because a family stores weights of several blocks in one, everything is a single block.

    Args:
        model: knows what was done to load it.
        state: the weights by their names in the model.

    Returns:
        Names in the model, a list a block; and tensors on the meta device by their names in the files.
    """
    empty = {name: torch.empty(tensor.shape, dtype=tensor.dtype, device="meta") for name, tensor in state.items()}
    whole = revert_weight_conversion(model, empty)
    blocks = defaultdict(list)
    for name in state:
        numbered = re.match(r".*?\.\d+\.", name)
        blocks[numbered.group() if numbered else name].append(name)
    apart: dict[str, Tensor] = {}
    for block in blocks.values():
        apart |= revert_weight_conversion(model, {name: empty[name] for name in block})
    if {name: tensor.shape for name, tensor in apart.items()} == {name: tensor.shape for name, tensor in whole.items()}:
        return list(blocks.values()), whole
    return [list(state)], whole


def _write_block(model: PreTrainedModel, block: dict[str, Tensor], file_of: Mapping[str, "_WeightsFile"]) -> None:
    """Write the weights ``block`` of the model; what was copied to rearrange them is freed on return."""
    for name, tensor in revert_weight_conversion(model, block).items():
        file_of[name].write(name, tensor)


class _WeightsFile:
    """A safetensors file whose contents are known beforehand and written in any order.

    Eight bytes with the header's length, the header in JSON, the tensors' bytes without gaps.
    """

    def __init__(self, path: Path, planned: Mapping[str, Tensor]) -> None:
        """Create ``path`` for the names, shapes and dtypes of ``planned``, and write its header."""
        self.dtypes = {name: tensor.dtype for name, tensor in planned.items()}
        self.starts: dict[str, int] = {}
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        end = 0
        # The widest first, as the reference writer has it: so each tensor is aligned to its own width.
        for name, tensor in sorted(planned.items(), key=lambda item: -item[1].itemsize):
            self.starts[name], end = end, end + tensor.nbytes
            kind = SAFETENSORS_KINDS[tensor.dtype]
            header[name] = {"dtype": kind, "shape": list(tensor.shape), "data_offsets": [self.starts[name], end]}
        text = orjson.dumps(header)
        text += b" " * (-len(text) % HEADER_ALIGNMENT_BYTES)
        self.file = path.open("wb")
        self.file.write(len(text).to_bytes(8, "little") + text)
        self.data_start = self.file.tell()

    def __enter__(self) -> "_WeightsFile":
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def write(self, name: str, tensor: Tensor) -> None:
        """Write ``tensor``, of any device and dtype, in its place and in the dtype planned for it."""
        stored = tensor.detach().to(self.dtypes[name]).cpu().contiguous()
        self.file.seek(self.data_start + self.starts[name])
        self.file.write(stored.reshape(-1).view(torch.uint8).numpy().data)


def copy_tokenizer(model_path: str, target: Path) -> None:
    """Put the tokenizer of ``model_path`` into ``target``; a local folder's files are copied as they are."""
    source = Path(model_path)
    if source.is_dir():
        for pattern in TOKENIZER_FILES:
            for file in source.glob(pattern):
                shutil.copy2(file, target / file.name)
    else:
        AutoTokenizer.from_pretrained(model_path).save_pretrained(target)
