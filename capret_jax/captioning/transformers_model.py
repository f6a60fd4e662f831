"""A causal language model on this machine, through transformers and torch."""

import asyncio
import functools
import inspect
import pathlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from capret_jax.captioning.language_model import MAX_COMPLETION_TOKENS, Completion
from capret_jax.errors import InputError
from capret_jax.request_batcher import Batcher

_BATCH_SIZE = 32


class TransformersModel:
    """A causal language model on this machine; concurrent prompts share a batch.

    Attributes:
        name: the folder, file or hub name.
    """

    def __init__(self, path: str):
        """
        Args:
            path: folder or hub name of a model, Phi-3 for instance; or a file NAME.gguf, or a
                folder with one such file and no config.json.

        Raises:
            InputError: torch is missing, or there is no such model.
        """
        try:
            import torch
            import transformers
        except ImportError as error:
            raise InputError(
                f"--questioner=transformers:{path} needs torch, which nothing else here does: "
                "pip install torch, or run the model behind a server."
            ) from error
        folder, gguf = split_gguf(path)
        try:
            self._tokenizer = transformers.AutoTokenizer.from_pretrained(
                folder, padding_side="left", **gguf
            )
            # On a GPU in the dtype of the checkpoint, which is a 16-bit one for Phi-3.
            device = "cuda" if torch.cuda.is_available() else "cpu"
            dtype = "auto" if device == "cuda" else torch.float32
            model: Any = transformers.AutoModelForCausalLM.from_pretrained(
                folder, dtype=dtype, **gguf
            )
            self._model = model.to(device).eval()
        except ImportError as error:
            raise InputError(
                f"--questioner=transformers:{path} is in GGUF: pip install gguf accelerate."
            ) from error
        except (OSError, ValueError) as error:
            raise InputError(f"no language model at transformers:{path}: {error}") from error
        if self._tokenizer.pad_token is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token
        self._torch, self.name = torch, path
        self._new_cache = lambda: transformers.DynamicCache(config=self._model.config)
        # An argument that transformers renamed within version 5.
        names = inspect.signature(self._model.forward).parameters
        self._cache_name = "cache" if "cache" in names else "past_key_values"
        self._executor = ThreadPoolExecutor(1)
        self._batcher: Batcher[str, Completion] | None = None
        # Many conversations begin alike.
        self._cached_choice = functools.lru_cache(maxsize=10_000)(self._choose)

    async def __call__(self, prompt: str) -> Completion:
        """Completes one prompt, in a batch with others that wait."""
        if self._batcher is None:
            self._batcher = Batcher(self._complete, self._executor, _BATCH_SIZE, max_waiting=0)
            self._batcher.start()
        return await self._batcher(prompt)

    async def choose(self, prompt: str, replies: Sequence[str]) -> Completion:
        """Returns the likeliest of several replies to a prompt, by the mean over its tokens."""
        loop = asyncio.get_running_loop()
        choose = self._cached_choice
        return await loop.run_in_executor(self._executor, choose, prompt, tuple(replies))

    async def close(self) -> None:
        """Stops the batcher and its thread."""
        if self._batcher:
            await self._batcher.stop()
        self._executor.shutdown()

    def _complete(self, prompts: Sequence[str]) -> list[Completion]:
        tokens = self._tokenizer(
            [self._apply_template(prompt) for prompt in prompts],
            return_tensors="pt",
            padding=True,
            add_special_tokens=self._tokenizer.chat_template is None,
        ).to(self._model.device)
        with self._torch.inference_mode():
            written = self._model.generate(
                **tokens,
                max_new_tokens=MAX_COMPLETION_TOKENS,
                do_sample=False,
                pad_token_id=self._tokenizer.pad_token_id,
            )[:, tokens["input_ids"].shape[1] :]
        texts = self._tokenizer.batch_decode(written, skip_special_tokens=True)
        prompt_tokens = tokens["attention_mask"].sum(dim=1).tolist()
        text_tokens = (written != self._tokenizer.pad_token_id).sum(dim=1).tolist()
        columns = zip(texts, prompt_tokens, text_tokens, strict=True)
        return [Completion(*column) for column in columns]

    def _choose(self, prompt: str, replies: Sequence[str]) -> Completion:
        tokenizer, device = self._tokenizer, self._model.device
        template = self._apply_template(prompt)
        start = tokenizer(
            template, return_tensors="pt", add_special_tokens=tokenizer.chat_template is None
        ).to(device)["input_ids"]
        ends = tokenizer(
            list(replies),
            return_tensors="pt",
            padding=True,
            padding_side="right",
            add_special_tokens=False,
        ).to(device)
        ids, mask = ends["input_ids"], ends["attention_mask"]
        with self._torch.inference_mode():
            # The prompt is computed once, and its keys and values are shared by all replies.
            cache = self._new_cache()
            read = self._model(input_ids=start, **{self._cache_name: cache})
            cache.batch_repeat_interleave(len(replies))
            seen = self._torch.ones((len(replies), start.shape[1]), dtype=mask.dtype, device=device)
            written = self._model(
                input_ids=ids,
                attention_mask=self._torch.cat([seen, mask], dim=1),
                **{self._cache_name: cache},
            )
            first = read.logits[:, -1:].expand(len(replies), -1, -1)
            logits = self._torch.cat([first, written.logits[:, :-1]], dim=1)
            logs = logits.float().log_softmax(-1).gather(-1, ids[..., None])[..., 0]
            best = int(((logs * mask).sum(1) / mask.sum(1)).argmax())
        return Completion(replies[best], start.shape[1], int(mask.sum()))

    def _apply_template(self, prompt: str) -> str:
        if self._tokenizer.chat_template is None:
            return prompt
        messages = [{"role": "user", "content": prompt}]
        return str(
            self._tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True
            )
        )


def split_gguf(path: str) -> tuple[str, dict[str, str]]:
    """Returns the folder of a model, and the argument that names its GGUF file, if it is one."""
    file = pathlib.Path(path)
    if file.is_dir() and not (file / "config.json").exists():
        found = sorted(file.glob("*.gguf"))
        if len(found) > 1:
            names = ", ".join(each.name for each in found)
            raise InputError(
                f"--questioner=transformers:{path} has several models ({names}): name one file."
            )
        file = found[0] if found else file
    if file.suffix != ".gguf":
        return path, {}
    if not file.is_file():
        raise InputError(f"--questioner=transformers:{path}: there is no such file.")
    return str(file.parent), {"gguf_file": file.name}
