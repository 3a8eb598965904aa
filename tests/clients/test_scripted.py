"""A model that answers by a script: the rules pick the answer, and it comes as it was written."""

import shutil
import tempfile
import unittest
from pathlib import Path

import openai
import scripted
from support import KEY, Server

SCRIPT = {
    "rules": [
        {"when": {"result": "code 0"}, "then": [{"text": "It is there."}]},
        {"when": {"user": "again", "answers": 1}, "then": [{"text": "A second time."}]},
        {
            "when": {"tool": "run", "system": "careful"},
            "then": [
                {"reasoning": "One word."},
                {"text": "I write it."},
                {"call": "run", "arguments": {"command": "echo 'hi'\n"}},
            ],
        },
        {"when": {"user": "hello"}, "then": [{"text": "Hello to you."}]},
    ]
}
TOOL = {"type": "function", "function": {"name": "run", "parameters": {"type": "object", "properties": {}}}}


def setUpModule():
    global server, folder, api
    folder = Path(tempfile.mkdtemp())
    server = Server(str(scripted.make(folder / "scripted", SCRIPT)))
    api = openai.OpenAI(base_url=server.url + "/v1", api_key=KEY, max_retries=0)


def tearDownModule():
    assert server.stop() == 0
    shutil.rmtree(folder)


def ask(*messages, **options):
    # At the default temperature: a script is followed whatever is drawn.
    turns = [{"role": role, "content": content} for role, content in messages]
    return api.chat.completions.create(model="scripted", messages=turns, **options).choices[0]


class Rules(unittest.TestCase):
    def test_the_first_rule_that_fits_answers(self):
        self.assertEqual(ask(("user", "hello")).message.content, "Hello to you.")
        again = [("user", "hello"), ("assistant", "Hello to you."), ("user", "again")]
        self.assertEqual(ask(*again).message.content, "A second time.")

    def test_a_call_and_its_result(self):
        asked = [("system", "Be careful."), ("user", "hello")]
        choice = ask(*asked, tools=[TOOL])
        self.assertEqual(choice.finish_reason, "tool_calls")
        self.assertEqual(choice.message.reasoning_content.strip(), "One word.")
        self.assertEqual(choice.message.content.strip(), "I write it.")
        (call,) = choice.message.tool_calls
        self.assertEqual(call.function.name, "run")
        self.assertIn("echo 'hi'\\n", call.function.arguments)
        turns = [{"role": role, "content": content} for role, content in asked]
        turns.append(choice.message.model_dump(exclude_none=True))
        turns.append({"role": "tool", "tool_call_id": call.id, "content": "exited with code 0"})
        answer = api.chat.completions.create(model="scripted", messages=turns, tools=[TOOL]).choices[0]
        self.assertEqual((answer.finish_reason, answer.message.content), ("stop", "It is there."))

    def test_where_no_rule_fits_the_answer_says_so(self):
        self.assertEqual(ask(("user", "something else")).message.content, scripted.NONE)
