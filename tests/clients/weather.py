"""The conversation that every library is led through: a tool that tells the weather, and an owner of a pet."""

import contextlib
from typing import Literal, Union

from pydantic import BaseModel, Field
from support import Scripted, call, rule

CHAT, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/responses", "/v1/messages"
PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
SKIES = {"Paris": "sunny", "Rome": "rainy"}
PET = '{"name": "Tom", "age": 3, "pet": {"kind": "cat", "lives": 9}}'
RULES = [
    rule(call("weather", city="Paris", days=2), contains="Paris"),
    rule("Let me see.\n" + call("weather", city="Rome", days=1), contains="Rome"),
    rule("\n".join(call("weather", city=city, days=1) for city in SKIES), contains="both"),
    rule(PET, contains="pet"),
    rule("You are welcome.", contains="Thanks"),
    rule("It is sunny.", role="tool", contains="sunny"),
    rule("It rains.", role="tool", contains="rainy"),
    rule("Good day to you."),
]


class Cat(BaseModel):
    kind: Literal["cat"]
    lives: int


class Dog(BaseModel):
    kind: Literal["dog"]
    barks: bool


class Owner(BaseModel):
    """Somebody, and a pet that one field tells the kind of: a schema with `oneOf`."""

    name: str
    age: int
    pet: Union[Cat, Dog] = Field(discriminator="kind")


TOM = Owner(name="Tom", age=3, pet=Cat(kind="cat", lives=9))


class Weather:
    """The tool, and what it was asked."""

    def __init__(self):
        self.asked = []

    def tell(self, city, days):
        self.asked.append((city, days))
        return SKIES[city]


class Led(Scripted):
    """Tests that ask for the weather."""

    rules = RULES

    def setUp(self):
        super().setUp()
        self.weather = Weather()

    @contextlib.contextmanager
    def part(self, **what):
        with super().part(**what):
            self.weather.asked.clear()
            yield
