"""Formats that are enforced, tools, and log-probabilities, by the clients that people use."""

import json
import os
import tempfile
import unittest
from typing import Literal

import anthropic
import noise
import openai
from pydantic import BaseModel, ConfigDict
from support import KEY, QUESTION, Async, Server

PROPERTIES = {"city": {"enum": ["Paris", "Rome"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}}
PARAMETERS = {"type": "object", "properties": PROPERTIES, "required": ["city", "days"], "additionalProperties": False}
WEATHER = {"name": "weather", "description": "Tells the weather.", "parameters": PARAMETERS}
CLOCK = {"name": "clock", "parameters": {"type": "object", "properties": {}, "additionalProperties": False}}
TOOLS = [{"type": "function", "function": WEATHER}, {"type": "function", "function": CLOCK}]


class Cat(BaseModel):
    # Where more keys are allowed, a model that tells stories makes up keys until its tokens are used up.
    model_config = ConfigDict(extra="forbid")
    colour: Literal["black", "white"]
    asleep: bool


def setUpModule():
    global stories, tools, home
    home = tempfile.TemporaryDirectory()
    stories = Server()
    stories.name = "stories"
    # What it says, only a grammar decides.
    tools = Server(noise.make(os.path.join(home.name, "noise")))
    tools.name = "noise"


def tearDownModule():
    assert (stories.stop(), tools.stop()) == (0, 0)
    home.cleanup()


def client(server):
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0)


def claude(server):
    return anthropic.Anthropic(base_url=server.url, api_key=KEY, max_retries=0)


def ask(server, **options):
    return client(server).chat.completions.create(
        **{"model": server.name, "messages": QUESTION, "temperature": 0, "max_completion_tokens": 200, **options}
    )


def is_weather(arguments):
    made = json.loads(arguments) if isinstance(arguments, str) else arguments
    return made["city"] in PROPERTIES["city"]["enum"] and 1 <= made["days"] <= 9 and len(made) == 2


class Formats(unittest.TestCase):
    def test_a_schema(self):
        answer = client(stories).chat.completions.parse(
            model="stories", messages=QUESTION, response_format=Cat, temperature=0
        )
        self.assertIsInstance(answer.choices[0].message.parsed, Cat)
        self.assertEqual(answer.choices[0].finish_reason, "stop")
        form = {"type": "json_schema", "json_schema": {"name": "cat", "schema": Cat.model_json_schema()}}
        for stream in (False, True):
            got = ask(stories, response_format=form, stream=stream, temperature=1, seed=3)
            text = "".join(c.choices[0].delta.content or "" for c in got) if stream else got.choices[0].message.content
            Cat.model_validate_json(text)

    def test_other_kinds(self):
        text = ask(stories, response_format={"type": "json_object"}, temperature=1, seed=1, max_completion_tokens=400)
        if text.choices[0].finish_reason == "stop":
            self.assertIsInstance(json.loads(text.choices[0].message.content), dict)
        regex = {"type": "regex", "regex": "[0-9]{3}-[a-c]{2}"}
        text = ask(stories, response_format=regex).choices[0].message.content
        self.assertRegex(text, "^[0-9]{3}-[a-c]{2}$")
        lark = {"type": "lark", "grammar": 'start: "yes" | "no"'}
        self.assertIn(ask(stories, response_format=lark).choices[0].message.content, ("yes", "no"))
        answer = client(stories).completions.create(
            model="stories", prompt="One day", max_tokens=50, extra_body={"response_format": regex}
        )
        self.assertRegex(answer.choices[0].text, "^[0-9]{3}-[a-c]{2}$")

    def test_in_the_other_apis(self):
        schema = {"type": "json_schema", "name": "cat", "schema": Cat.model_json_schema(), "strict": True}
        answer = client(stories).responses.create(
            model="stories", input="Once upon a time", text={"format": schema}, temperature=0
        )
        Cat.model_validate_json(answer.output_text)
        config = {"format": {"type": "json_schema", "schema": Cat.model_json_schema()}}
        answer = claude(stories).messages.create(
            model="stories", max_tokens=400, messages=QUESTION, output_config=config, extra_body={"temperature": 0}
        )
        Cat.model_validate_json(answer.content[0].text)

    def test_what_cannot_be_enforced_is_refused(self):
        schemas = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "array", "uniqueItems": True}}}
        for form in (schemas, {"type": "regex", "regex": "("}, {"type": "lark", "grammar": "start"}, {"type": "xml"}):
            with self.assertRaises(openai.BadRequestError):
                ask(stories, response_format=form)


class Calls(unittest.TestCase):
    def test_required(self):
        for choice in ("required", {"type": "function", "function": {"name": "weather"}}):
            message = ask(tools, tools=TOOLS, tool_choice=choice, parallel_tool_calls=False, temperature=1, seed=2)
            self.assertEqual(message.choices[0].finish_reason, "tool_calls")
            message = message.choices[0].message
            self.assertIsNone(message.content)
            call = message.tool_calls[0]
            self.assertRegex(call.id, "^call_")
            if call.function.name == "weather":
                self.assertTrue(is_weather(call.function.arguments), call.function.arguments)
            else:
                self.assertEqual((choice, json.loads(call.function.arguments)), ("required", {}))

    def test_streamed(self):
        options = {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "weather"}}}
        options |= {"parallel_tool_calls": False, "temperature": 1, "seed": 4}
        whole = ask(tools, **options).choices[0].message.tool_calls[0].function
        chunks = [chunk.choices[0] for chunk in ask(tools, stream=True, **options)]
        calls = [call for chunk in chunks for call in chunk.delta.tool_calls or []]
        self.assertEqual((calls[0].function.name, calls[0].type), ("weather", "function"))
        self.assertTrue(calls[0].id and all(call.id is None for call in calls[1:]))
        self.assertEqual("".join(call.function.arguments for call in calls), whole.arguments)
        self.assertEqual(chunks[-1].finish_reason, "tool_calls")

    def test_results_go_back(self):
        call = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}
        turns = QUESTION + [{"role": "assistant", "content": None, "tool_calls": [call]}]
        turns += [{"role": "tool", "tool_call_id": "call_1", "content": "sunny"}]
        self.assertEqual(ask(tools, messages=turns, tools=TOOLS, max_completion_tokens=3).usage.completion_tokens, 3)
        blocks = [{"type": "tool_use", "id": "call_1", "name": "weather", "input": {"city": "Rome"}}]
        result = [{"type": "tool_result", "tool_use_id": "call_1", "content": "sunny"}]
        turns = QUESTION + [{"role": "assistant", "content": blocks}, {"role": "user", "content": result}]
        shown = [{"name": "weather", "description": WEATHER["description"], "input_schema": PARAMETERS}]
        more = shown + [{"name": "clock", "input_schema": CLOCK["parameters"]}]
        one, two = (
            claude(tools).messages.count_tokens(model="noise", messages=turns, tools=some).input_tokens
            for some in (shown, more)
        )
        self.assertGreater(two, one)

    def test_anthropic(self):
        shown = [{"name": "weather", "input_schema": PARAMETERS}]
        for choice in ({"type": "any"}, {"type": "tool", "name": "weather"}):
            options = {"model": "noise", "max_tokens": 200, "messages": QUESTION, "tools": shown}
            options |= {"tool_choice": {**choice, "disable_parallel_tool_use": True}, "extra_body": {"seed": 6}}
            answer = claude(tools).messages.create(**options)
            self.assertEqual((answer.stop_reason, answer.content[0].type), ("tool_use", "tool_use"))
            self.assertTrue(is_weather(answer.content[0].input))
            with claude(tools).messages.stream(**options) as stream:
                kinds = [event.type for event in stream]
                final = stream.get_final_message()
            self.assertIn("content_block_stop", kinds)
            self.assertEqual(final.content[0].input, answer.content[0].input)

    def test_responses(self):
        shown = [{"type": "function", "name": "weather", "parameters": PARAMETERS, "strict": True}]
        options = {"model": "noise", "input": "Hi", "tools": shown, "parallel_tool_calls": False}
        options |= {"tool_choice": {"type": "function", "name": "weather"}, "extra_body": {"seed": 8}}
        answer = client(tools).responses.create(**options)
        call = answer.output[0]
        self.assertEqual((answer.status, call.type, call.name), ("completed", "function_call", "weather"))
        self.assertTrue(is_weather(call.arguments))
        events = list(client(tools).responses.create(stream=True, **options))
        parts = "".join(e.delta for e in events if e.type == "response.function_call_arguments.delta")
        done = [e for e in events if e.type == "response.function_call_arguments.done"]
        self.assertEqual((parts, done[0].arguments), (call.arguments, call.arguments))
        turns = [{"role": "user", "content": "Hi"}, call.model_dump(exclude_none=True)]
        turns += [{"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}]
        client(tools).responses.create(model="noise", input=turns, tools=shown, max_output_tokens=3)

    def test_what_cannot_be_done_is_refused(self):
        for wrong in (
            {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "nobody"}}},
            {"tool_choice": "required"},
            {"tools": [TOOLS[0], TOOLS[0]]},
            {"tools": [{"type": "function", "function": {"name": "a b"}}]},
        ):
            with self.assertRaises(openai.BadRequestError):
                ask(tools, **wrong)
        # This model's template knows no calls.
        with self.assertRaises(openai.BadRequestError):
            ask(stories, tools=TOOLS, tool_choice="required")


class Logprobs(Async):
    def check(self, text, content):
        self.assertEqual(b"".join(bytes(token.bytes) for token in content).decode(), text)
        for token in content:
            self.assertLessEqual(token.logprob, 0)
            values = [top.logprob for top in token.top_logprobs]
            self.assertEqual((len(values), values), (3, sorted(values, reverse=True)))
            # At temperature 0 the likeliest is taken.
            self.assertEqual((token.token, token.logprob), (token.top_logprobs[0].token, values[0]))

    def test_chat(self):
        options = {"logprobs": True, "top_logprobs": 3, "max_completion_tokens": 20}
        whole = ask(stories, **options).choices[0]
        self.check(whole.message.content, whole.logprobs.content)
        self.assertEqual(len(whole.logprobs.content), 20)
        chunks = [chunk.choices[0] for chunk in ask(stories, stream=True, **options)]
        content = [token for chunk in chunks if chunk.logprobs for token in chunk.logprobs.content]
        self.assertEqual(content, whole.logprobs.content)

    def test_completions(self):
        answer = client(stories).completions.create(
            model="stories", prompt="Once upon a time", max_tokens=8, temperature=0, logprobs=2
        )
        text, found = answer.choices[0].text, answer.choices[0].logprobs
        self.assertEqual("".join(found.tokens), text)
        self.assertEqual([text[at:][:1] for at in found.text_offset], [token[:1] for token in found.tokens])
        self.assertTrue(all(len(top) == 2 and max(top.values()) <= 0 for top in found.top_logprobs))

    def test_responses(self):
        options = {"model": "stories", "input": "Once upon a time", "temperature": 0, "max_output_tokens": 8}
        options |= {"include": ["message.output_text.logprobs"], "top_logprobs": 3}
        answer = client(stories).responses.create(**options)
        part = answer.output[0].content[0]
        self.check(part.text, part.logprobs)


if __name__ == "__main__":
    unittest.main()
