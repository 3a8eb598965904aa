"""The `openai` package in conversations with tools: what its answers are goes back to the server as it is."""

import json
import unittest

import openai
from support import KEY, MODEL, Scripted
from weather import CHAT, PARAMETERS, RESPONSES, RULES, SKIES, TOM, Owner
from pydantic import BaseModel

FUNCTION = {"name": "weather", "description": "Tells the weather.", "parameters": PARAMETERS, "strict": True}
TOOLS = [{"type": "function", "function": FUNCTION}]
FLAT = [{"type": "function", **FUNCTION}]


class weather(BaseModel):
    """Tells the weather."""

    city: str
    days: int


class Loops(Scripted):
    rules = RULES

    def client(self):
        return openai.OpenAI(base_url=f"{self.server.url}/v1", api_key=KEY, max_retries=0)


def result(made, text):
    return {"role": "tool", "tool_call_id": made.id, "content": text}


class Chat(Loops):
    def check(self, ask, kept):
        """Two turns with a call each; `kept` is how a message is kept."""
        turns = []
        for question, said, arguments, text in (
            ("Weather in Rome?", "Let me see.", {"city": "Rome", "days": 1}, "It rains."),
            ("And in Paris?", "", {"city": "Paris", "days": 2}, "It is sunny."),
        ):
            turns.append({"role": "user", "content": question})
            message, reason, usage = ask(turns)
            self.assertEqual((reason, message.content or "", len(message.tool_calls)), ("tool_calls", said, 1))
            made = message.tool_calls[0]
            self.assertEqual((made.function.name, json.loads(made.function.arguments)), ("weather", arguments))
            turns += [kept(message), result(made, SKIES[arguments["city"]])]
            message, reason, more = ask(turns)
            self.assertEqual((reason, message.content, message.tool_calls or []), ("stop", text, []))
            self.assertGreater(more.prompt_tokens, usage.prompt_tokens)
            self.assertEqual(more.total_tokens, more.prompt_tokens + more.completion_tokens)
            turns.append(kept(message))
        self.assertEqual(self.asked(), {(CHAT, 200): 4})

    def test_messages_as_objects_and_as_dictionaries(self):
        def ask(turns):
            answer = self.client().chat.completions.create(model=MODEL, messages=turns, tools=TOOLS)
            return answer.choices[0].message, answer.choices[0].finish_reason, answer.usage

        for kept in (lambda message: message, lambda message: message.to_dict(), lambda message: message.model_dump()):
            with self.part():
                self.check(ask, kept)

    def test_the_stream_helper(self):
        def ask(turns):
            options = {"stream_options": {"include_usage": True}}
            with self.client().chat.completions.stream(model=MODEL, messages=turns, tools=TOOLS, **options) as stream:
                stream.until_done()
                answer = stream.get_final_completion()
            return answer.choices[0].message, answer.choices[0].finish_reason, answer.usage

        # The helper keeps the arguments that it has read, and the index of the call.
        self.check(ask, lambda message: message)

    def test_several_calls_at_once(self):
        turns = [{"role": "user", "content": "Weather in both?"}]
        message = self.client().chat.completions.create(model=MODEL, messages=turns, tools=TOOLS).choices[0].message
        asked = [json.loads(made.function.arguments)["city"] for made in message.tool_calls]
        self.assertEqual(asked, ["Paris", "Rome"])
        turns += [message, *(result(made, SKIES[city]) for made, city in zip(message.tool_calls, asked))]
        answer = self.client().chat.completions.create(model=MODEL, messages=turns, tools=TOOLS)
        self.assertEqual(answer.choices[0].message.content, "It rains.")

    def test_parsed_answers_and_calls_go_back(self):
        api = self.client().chat.completions
        turns = [{"role": "user", "content": "Whose pet?"}]
        for _ in range(2):
            message = api.parse(model=MODEL, messages=turns, response_format=Owner).choices[0].message
            self.assertEqual(message.parsed, TOM)
            # The message has what was read of it in `parsed`.
            turns += [message, {"role": "user", "content": "And whose pet is that?"}]
        turns[-1]["content"] = "Weather in Paris?"
        tools = [openai.pydantic_function_tool(weather)]
        message = api.parse(model=MODEL, messages=turns, tools=tools).choices[0].message
        made = message.tool_calls[0]
        self.assertEqual(made.function.parsed_arguments, weather(city="Paris", days=2))
        message = api.parse(model=MODEL, messages=[*turns, message, result(made, "sunny")], tools=tools).choices[0].message
        self.assertEqual(message.content, "It is sunny.")
        self.assertEqual(self.asked(), {(CHAT, 200): 4})

    def test_a_call_that_has_to_be(self):
        turns = [{"role": "user", "content": "Weather in Paris?"}]
        for choice in ("required", {"type": "function", "function": {"name": "weather"}}):
            answer = self.client().chat.completions.create(model=MODEL, messages=turns, tools=TOOLS, tool_choice=choice)
            made = answer.choices[0].message.tool_calls[0].function
            self.assertEqual(json.loads(made.arguments), {"city": "Paris", "days": 2})


class Responses(Loops):
    def check(self, ask, kept):
        turns = []
        for question, kinds, arguments, text in (
            ("Weather in Rome?", ["message", "function_call"], {"city": "Rome", "days": 1}, "It rains."),
            ("And in Paris?", ["function_call"], {"city": "Paris", "days": 2}, "It is sunny."),
        ):
            turns.append({"role": "user", "content": question})
            answer = ask(turns)
            self.assertEqual((answer.status, [item.type for item in answer.output]), ("completed", kinds))
            made = answer.output[-1]
            self.assertEqual((made.name, json.loads(made.arguments)), ("weather", arguments))
            turns += [kept(item) for item in answer.output]
            sky = SKIES[arguments["city"]]
            turns.append({"type": "function_call_output", "call_id": made.call_id, "output": sky})
            last = ask(turns)
            self.assertEqual((last.output_text, len(last.output)), (text, 1))
            self.assertGreater(last.usage.input_tokens, answer.usage.input_tokens)
            self.assertEqual(last.usage.total_tokens, last.usage.input_tokens + last.usage.output_tokens)
            turns += [kept(item) for item in last.output]
        self.assertEqual(self.asked(), {(RESPONSES, 200): 4})

    def test_items_as_objects_and_as_dictionaries(self):
        def ask(turns):
            return self.client().responses.create(model=MODEL, input=turns, tools=FLAT)

        for kept in (lambda item: item, lambda item: item.to_dict(), lambda item: item.model_dump()):
            with self.part():
                self.check(ask, kept)

    def test_the_stream_helper(self):
        def ask(turns):
            with self.client().responses.stream(model=MODEL, input=turns, tools=FLAT) as stream:
                stream.until_done()
                return stream.get_final_response()

        self.check(ask, lambda item: item)

    def test_a_result_in_parts(self):
        turns = [{"role": "user", "content": "Weather in Paris?"}]
        made = self.client().responses.create(model=MODEL, input=turns, tools=FLAT).output[0]
        parts = [{"type": "input_text", "text": "sunny"}]
        turns += [made, {"type": "function_call_output", "call_id": made.call_id, "output": parts}]
        self.assertEqual(self.client().responses.create(model=MODEL, input=turns, tools=FLAT).output_text, "It is sunny.")

    def test_parsed_answers_go_back(self):
        turns = [{"role": "user", "content": "Whose pet?"}]
        for _ in range(2):
            answer = self.client().responses.parse(model=MODEL, input=turns, text_format=Owner)
            self.assertEqual(answer.output_parsed, TOM)
            turns += [*answer.output, {"role": "user", "content": "And whose pet is that?"}]

    def test_wishes_that_the_model_may_follow(self):
        # What `openai-agents`, pydantic-ai and langchain send beside a conversation for models of OpenAI's.
        answer = self.client().responses.create(
            model=MODEL,
            input="Hello",
            reasoning={"effort": "low", "summary": "auto"},
            text={"verbosity": "low"},
            include=["reasoning.encrypted_content"],
            store=False,
        )
        self.assertEqual(answer.output_text, "Good day to you.")


if __name__ == "__main__":
    unittest.main()
