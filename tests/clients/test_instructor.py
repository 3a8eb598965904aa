"""`instructor`: answers in a schema, by each of its modes, and asked for anew where they do not fit."""

import unittest

import anthropic
import openai
from pydantic import BaseModel
from support import KEY, MODEL, Scripted, call, needs, rule
from weather import CHAT, MESSAGES, RULES, TOM, Owner

needs("instructor")
import instructor
from instructor import Mode


class Age(BaseModel):
    """With a check that no schema holds."""

    years: int

    def model_post_init(self, context):
        if self.years > 150:
            raise ValueError("nobody is that old")


RULES = [
    rule(call("Age", years=300), contains="How old", calls=0),
    rule(call("Age", years=30), role="tool", contains="nobody is that old"),
    rule(call("Owner", name="Tom", age=3, pet={"kind": "cat", "lives": 9}), contains="as a tool"),
    *RULES,
]


class Modes(Scripted):
    rules = RULES

    def openai(self, mode):
        api = openai.OpenAI(base_url=f"{self.server.url}/v1", api_key=KEY, max_retries=0)
        return instructor.from_openai(api, mode=mode)

    def anthropic(self, mode):
        return instructor.from_anthropic(anthropic.Anthropic(base_url=self.server.url, api_key=KEY, max_retries=0), mode=mode)

    def test_schemas(self):
        for route, make, mode in (
            (CHAT, self.openai, Mode.TOOLS),
            (CHAT, self.openai, Mode.TOOLS_STRICT),
            (CHAT, self.openai, Mode.JSON),
            (CHAT, self.openai, Mode.JSON_SCHEMA),
            (CHAT, self.openai, Mode.MD_JSON),
            (MESSAGES, self.anthropic, Mode.ANTHROPIC_TOOLS),
            (MESSAGES, self.anthropic, Mode.ANTHROPIC_JSON),
        ):
            with self.part(mode=mode):
                question = "Whose pet, as a tool?" if "TOOLS" in mode.name else "Whose pet?"
                turns = [{"role": "user", "content": question}]
                made = make(mode).chat.completions.create(
                    model=MODEL, max_tokens=200, messages=turns, response_model=Owner, max_retries=0
                )
                # It makes a class of its own of the given one.
                self.assertEqual(made.model_dump(), TOM.model_dump())
                self.assertEqual(self.asked(), {(route, 200): 1})

    def test_an_answer_that_does_not_fit_is_asked_for_anew(self):
        turns = [{"role": "user", "content": "How old is she?"}]
        made = self.openai(Mode.TOOLS).chat.completions.create(
            model=MODEL, messages=turns, response_model=Age, max_retries=2
        )
        self.assertEqual(made.years, 30)
        self.assertEqual(self.asked(), {(CHAT, 200): 2})


if __name__ == "__main__":
    unittest.main()
