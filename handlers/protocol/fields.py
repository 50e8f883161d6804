"""The JSON object that is a protocol's body: fields are read one by one, and what nobody has read is refused."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from handlers.near_names import did_you_mean, nearest
from handlers.protocol import bodies, encodings, options
from handlers.protocol.bodies import Part
from handlers.protocol.content import merged
from handlers.protocol.errors import EmptyRequest, InvalidInput, InvalidOption, RequestError
from handlers.protocol.interface import Interface
from handlers.protocol.row import ROUTING, Row
from handlers.protocol.wording import kind_of, names_of


class Fields:
    """A JSON object. `null` counts as a field that did not come."""

    def __init__(self, sent: Mapping[str, Any], what: str = "the body") -> None:
        self.left = {name: value for name, value in sent.items() if value is not None}
        self.names = list(sent)
        self.what = what
        self.known: list[str] = []

    def take(self, name: str) -> Any:
        """Return a field's value, or None."""
        self.known.append(name)
        return self.left.pop(name, None)

    def required(self, name: str, wanted: str) -> Any:
        """Return a field's value. Raises InvalidInput without one."""
        value = self.take(name)
        if value is None:
            near = nearest(name, [one for one in self.names if one not in self.known])
            sent = f", and {names_of([near])} came" if near else ""
            raise at(name, InvalidInput(f'{self.what} holds no "{name}"{sent}; wanted: {wanted}'))
        return value

    def text(self, name: str) -> str | None:
        """Return a field that holds a string, or None. Raises InvalidInput."""
        value = self.take(name)
        if value is None or isinstance(value, str):
            return value
        raise at(name, InvalidInput(f'"{name}" holds {kind_of(value)}; wanted: a string'))

    def flag(self, name: str) -> bool:
        """Return a field that holds true or false; false if it did not come. Raises InvalidOption."""
        value = self.take(name)
        if value is None or isinstance(value, bool):
            return bool(value)
        raise at(name, InvalidOption(f'"{name}" holds {kind_of(value)}; wanted: true or false'))

    def count(self, name: str) -> int | None:
        """Return a field that holds a whole number from 1, or None. Raises InvalidOption."""
        value = self.take(name)
        if value is None or (type(value) is int and value >= 1):
            return value
        came = "a smaller one" if isinstance(value, int) and not isinstance(value, bool) else kind_of(value)
        raise at(name, InvalidOption(f'"{name}" holds {came}; wanted: a whole number from 1'))

    def option(self, name: str, model: Interface, field: str = "") -> dict[str, object]:
        """Return an option of the model that came in a field of its name, or in `field`; empty if it did not come.

        Raises InvalidOption.
        """
        field = field or name
        value = self.take(field)
        if value is None:
            return {}
        try:
            return {name: options.read(name, value, model, f'"{field}"')}
        except RequestError as error:
            raise at(field, error) from None

    def options(self, names: tuple[str, ...], model: Interface) -> dict[str, object]:
        """Return those of the model's options that came under these names. Raises InvalidOption."""
        return {key: value for name in names for key, value in self.option(name, model).items()}

    def inner(self, name: str) -> Fields:
        """Return the fields of an object in a field; none if it did not come. Raises InvalidInput."""
        value = self.take(name)
        if value is not None and not isinstance(value, dict):
            raise at(name, InvalidInput(f'"{name}" holds {kind_of(value)}; wanted: an object'))
        return Fields(value or {}, f'"{name}"')

    def refuse_rest(self) -> None:
        """Raises InvalidInput if a field came that nobody has read; `null` is no value, but has to be known too."""
        unknown = set(self.names) - set(self.known)
        if unknown:
            known = ", ".join(f'"{name}"' for name in self.known)
            near = did_you_mean(unknown, self.known)
            message = f"{self.what} holds unknown {names_of(unknown)}{near}; known: {known}"
            raise at(min(unknown)[:40], InvalidInput(message))


def at(field: str, error: RequestError) -> RequestError:
    """Return the error with the field that is at fault."""
    error.field = field
    return error


def read(row: Row, model: Interface) -> tuple[Fields, dict[str, object]]:
    """Return the fields of a row's body, and the options that its headers bring.

    Raises RequestError for a body that is no JSON object, and for what a header, a query or a form would say in vain.
    """
    row.refuse_other_headers()
    encodings.media_type(row.header("accept"), (encodings.JSON,))
    sent = options.of_row(row, model)
    if "body" not in row.parameters or row.is_multipart:
        raise InvalidInput("this path takes a JSON object as the body, with Content-Type: application/json")
    options.refuse_unknown(row.parameters.keys() - {"body", *model.options, *ROUTING}, model)
    body = bodies.read(row.parameters["body"], Part("the body", *row.content_type), model)
    if not body.is_json or not isinstance(body.value, dict):
        came = kind_of(body.value) if body.is_json else "something else"
        raise InvalidInput(f"this path takes a JSON object, and {came} came; send Content-Type: application/json")
    return Fields(body.value), sent


def together(
    sent: Mapping[str, object], chosen: Mapping[str, object], defaults: Mapping[str, object] | None = None
) -> dict[str, object]:
    """Return the options of headers and fields, and a protocol's own defaults for what neither brings.

    Raises InvalidOption for one that came twice with different values.
    """
    options = {**(defaults or {}), **merged(sent, chosen)}
    encodings.check(options, encodings.JSON)
    return options


def refuse_others(sent: Mapping[str, object], known: Collection[str]) -> None:
    """Raises InvalidOption for an option of a header or field that has no meaning on this path."""
    unknown = sent.keys() - set(known)
    if unknown:
        raise InvalidOption(f"{names_of(unknown)} has no meaning on this path")


def texts(value: object, name: str) -> list[str]:
    """Return a field's list of strings. Raises EmptyRequest or InvalidInput."""
    if not isinstance(value, list):
        raise at(name, InvalidInput(f'"{name}" holds {kind_of(value)}; wanted: a list of strings'))
    if not value:
        raise at(name, EmptyRequest(f'"{name}" is an empty list'))
    for place, item in enumerate(value, 1):
        if not isinstance(item, str):
            raise at(name, InvalidInput(f'item {place} of "{name}" is {kind_of(item)}; wanted: a string'))
    return value
