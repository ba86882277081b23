# SPDX-License-Identifier: Apache-2.0
"""Chat templates: the Jinja program a model ships that turns messages into its prompt, run in a sandbox."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from pagedserve.errors import InvalidInput, ModelError
from pagedserve.models.extras import optional


class ChatTemplate:
    """A model's chat template.

    Args:
        source: the Jinja text.
        bos_token, eos_token: what the template may write for them.

    Raises:
        ModelError: the text is not Jinja.
    """

    def __init__(self, source: str, *, bos_token: str = "", eos_token: str = "") -> None:
        self.source = source
        self._jinja = optional("jinja2", "a chat template")
        sandbox = optional("jinja2.sandbox", "a chat template")
        environment = sandbox.ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.filters["tojson"] = _to_json
        environment.globals.update(
            raise_exception=_raise, strftime_now=_now, bos_token=bos_token, eos_token=eos_token, tools=None
        )
        try:
            self._template = environment.from_string(source)
        except self._jinja.TemplateError as error:
            raise ModelError(f"the model's chat template is not valid Jinja: {error}") from None

    def render(
        self, messages: Sequence[Mapping[str, str]], *, add_generation_prompt: bool = True, **variables: Any
    ) -> str:
        """The prompt for messages, in the model's own form.

        Args:
            messages: {"role": ..., "content": ...} each; roles as the template knows them, most often "system",
                "user" and "assistant".
            add_generation_prompt: end with the opening of the assistant's answer.
            variables: whatever else the template reads, such as enable_thinking.

        Raises:
            InvalidInput: the messages are not such a list, or the template refuses them.
        """
        if isinstance(messages, (str, Mapping)) or not messages:
            raise InvalidInput(f'messages is {messages!r}; give a list such as [{{"role": "user", "content": "Hi"}}]')
        for index, message in enumerate(messages):
            known = isinstance(message, Mapping) and all(
                isinstance(message.get(key), str) for key in ("role", "content")
            )
            if not known:
                raise InvalidInput(f"messages[{index}] is {message!r}; a role and a content are needed, both strings")
        try:
            return str(
                self._template.render(messages=messages, add_generation_prompt=add_generation_prompt, **variables)
            )
        except InvalidInput:
            raise
        except Exception as error:  # a template may fail in any way a program can
            raise InvalidInput(f"the model's chat template refuses these messages: {error}") from None


def _to_json(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _raise(message: str) -> NoReturn:
    raise InvalidInput(f"the model's chat template refuses these messages: {message}")


def _now(form: str) -> str:
    return datetime.datetime.now().strftime(form)
