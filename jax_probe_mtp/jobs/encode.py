"""Records in tokens."""

import dataclasses
import datetime
from collections.abc import Mapping
from typing import Any

from jax_probe_mtp.decoding.settings import OF_PROMPT, Prompt
from jax_probe_mtp.files.records.record import Record
from jax_probe_mtp.generation import tokenizer


@dataclasses.dataclass(frozen=True)
class Encoder:
    """Turns records into tokens.

    Attributes:
      tokenizer: a `transformers.PreTrainedTokenizerFast`.
      use_chat_template: True puts prompts into its chat template.
      continue_final_message: True goes on with a last message that is the assistant's, where the record does not say.
      system: the system message of records that have none of their own.
      template_kwargs: variables of the chat template, of which a record's own come first.
      date: what a template that asks for the date is told; the present when None.
    """

    tokenizer: Any
    use_chat_template: bool = True
    continue_final_message: bool = False
    system: str | None = None
    template_kwargs: Mapping[str, Any] | None = None
    date: datetime.datetime | None = None
    _last: dict[int, list[int]] = dataclasses.field(default_factory=dict, init=False, repr=False, compare=False)

    def __call__(self, record: Record) -> Prompt:
        """Turns one record into tokens.

        Raises:
          ValueError: if the tokenizer or its chat template cannot take it.
        """
        own = {name: getattr(record, name) for name in ("seed", *OF_PROMPT)}
        if record.logit_bias is not None:  # JSON's keys are texts
            own["logit_bias"] = {int(token): bias for token, bias in record.logit_bias.items()}
        return Prompt(
            id=record.id,
            noise_name=record.noise_name,
            sample=record.sample,
            token_ids=self._token_ids(record),
            **own,
        )

    def _token_ids(self, record: Record) -> list[int]:
        """Gives the tokens; those of a record's several samples, which come one after the other, are made once."""
        if record.n == 1:
            return self._encoded(record)
        if record.content not in self._last:
            token_ids = self._encoded(record)
            self._last.clear()
            self._last[record.content] = token_ids
        return self._last[record.content]

    def _encoded(self, record: Record) -> list[int]:
        if record.prompt_ids is not None:
            return record.prompt_ids
        of_template: dict[str, Any] = {
            "system": self.system,
            "template_kwargs": {**(self.template_kwargs or {}), **(record.template_kwargs or {})},
            "tools": record.tools,
            "documents": record.documents,
        }
        if not self.use_chat_template:
            needing = [name for name in ("messages", "tools", "documents", "template_kwargs") if getattr(record, name)]
            if needing:
                way_out = "leave --no-chat-template out, or give a prompt alone."
                raise ValueError(f"{needing[0]} need the chat template; {way_out}")
            return tokenizer.encode(self.tokenizer, record.prompt or "", use_chat_template=False)
        if record.messages is None:
            return tokenizer.encode(
                self.tokenizer, record.prompt or "", use_chat_template=True, date=self.date, **of_template
            )
        continues = record.continue_final_message
        if continues is None:
            continues = self.continue_final_message
        return tokenizer.encode_messages(
            self.tokenizer, record.messages, continue_final_message=continues, date=self.date, **of_template
        )
