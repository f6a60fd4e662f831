"""A causal language model on this machine, through transformers and torch."""

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
        name: the folder or hub name.
    """

    def __init__(self, path: str):
        """
        Args:
            path: folder or hub name of a model, Phi-3 for instance.

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
        try:
            self._tokenizer = transformers.AutoTokenizer.from_pretrained(path, padding_side="left")
            # On a GPU in the dtype of the checkpoint, which is a 16-bit one for Phi-3.
            device = "cuda" if torch.cuda.is_available() else "cpu"
            dtype = "auto" if device == "cuda" else torch.float32
            model: Any = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=dtype)
            self._model = model.to(device).eval()
        except (OSError, ValueError) as error:
            raise InputError(f"no language model at transformers:{path}: {error}") from error
        if self._tokenizer.pad_token is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token
        self._torch, self.name = torch, path
        self._executor = ThreadPoolExecutor(1)
        self._batcher: Batcher[str, Completion] | None = None

    async def __call__(self, prompt: str) -> Completion:
        """Completes one prompt, in a batch with others that wait."""
        if self._batcher is None:
            self._batcher = Batcher(self._complete, self._executor, _BATCH_SIZE, max_waiting=0)
            self._batcher.start()
        return await self._batcher(prompt)

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

    def _apply_template(self, prompt: str) -> str:
        if self._tokenizer.chat_template is None:
            return prompt
        messages = [{"role": "user", "content": prompt}]
        return str(
            self._tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True
            )
        )
