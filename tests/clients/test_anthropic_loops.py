"""The `anthropic` package in conversations with tools: its own messages go back, and its runner drives the loop."""

import asyncio
import unittest

import anthropic
from anthropic import beta_async_tool, beta_tool
from support import KEY, MODEL
from weather import MESSAGES, PARAMETERS, SKIES, TOM, Led, Owner

TOOLS = [{"name": "weather", "description": "Tells the weather.", "input_schema": PARAMETERS}]
BRIEF = [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}]


class Loops(Led):
    def client(self):
        return anthropic.Anthropic(base_url=self.server.url, api_key=KEY, max_retries=0)

    def questions(self, content):
        return {"model": MODEL, "max_tokens": 200, "messages": [{"role": "user", "content": content}]}


class Messages(Loops):
    def check(self, ask, kept):
        turns = []
        for question, kinds, arguments, text in (
            ("Weather in Rome?", ["text", "tool_use"], {"city": "Rome", "days": 1}, "It rains."),
            ("And in Paris?", ["tool_use"], {"city": "Paris", "days": 2}, "It is sunny."),
        ):
            turns.append({"role": "user", "content": question})
            options = {"model": MODEL, "messages": turns, "tools": TOOLS, "system": BRIEF}
            answer = ask(max_tokens=200, **options)
            self.assertEqual((answer.stop_reason, [block.type for block in answer.content]), ("tool_use", kinds))
            made = answer.content[-1]
            self.assertEqual((made.name, made.input), ("weather", arguments))
            counted = self.client().messages.count_tokens(**options).input_tokens
            self.assertEqual(counted, answer.usage.input_tokens + answer.usage.cache_read_input_tokens)
            turns.append({"role": "assistant", "content": kept(answer.content)})
            parts = [{"type": "text", "text": SKIES[arguments["city"]]}]
            turns.append({"role": "user", "content": [
                {"type": "tool_result", "tool_use_id": made.id, "content": parts, "is_error": False},
            ]})
            last = ask(max_tokens=200, **options)
            self.assertEqual((last.stop_reason, last.content[0].text), ("end_turn", text))
            turns.append({"role": "assistant", "content": kept(last.content)})
        self.assertEqual(self.asked(), {(MESSAGES, 200): 4, (f"{MESSAGES}/count_tokens", 200): 2})

    def test_blocks_as_objects_and_as_dictionaries(self):
        for kept in (
            lambda blocks: blocks,
            lambda blocks: [block.to_dict() for block in blocks],
            # With every field that a block may have: `caller`, `citations`, `toolset_name`, all null.
            lambda blocks: [block.model_dump() for block in blocks],
        ):
            with self.part():
                self.check(self.client().messages.create, kept)

    def test_the_stream_helper(self):
        def ask(**options):
            with self.client().messages.stream(**options) as stream:
                return stream.get_final_message()

        self.check(ask, lambda blocks: blocks)

    def test_parsed_answers_go_back(self):
        for api in (self.client().messages, self.client().beta.messages):
            asked = self.questions("Whose pet?")
            for _ in range(2):
                answer = api.parse(output_format=Owner, **asked)
                self.assertEqual(answer.parsed_output, TOM)
                more = {"role": "user", "content": "And whose pet is that?"}
                asked["messages"] += [{"role": "assistant", "content": answer.content}, more]


class Runner(Loops):
    """The runner asks the server to hold the conversation; refused in the form that it knows, it sends all of it."""

    def tool(self):
        @beta_tool
        def weather(city: str, days: int) -> str:
            """Tells the weather.

            Args:
                city: The city.
                days: How many days.
            """
            return self.weather.tell(city, days)

        return weather

    def ended(self, message):
        self.assertEqual((message.stop_reason, message.content[0].text), ("end_turn", "It is sunny."))
        self.assertEqual(self.weather.asked, [("Paris", 2)])
        self.assertEqual(self.asked(), {(MESSAGES, 400): 1, (MESSAGES, 200): 2})

    def test_to_its_end(self):
        runner = self.client().beta.messages.tool_runner(tools=[self.tool()], **self.questions("Weather in Paris?"))
        self.ended(runner.until_done())

    def test_streamed(self):
        asked = self.questions("Weather in Paris?")
        runner = self.client().beta.messages.tool_runner(tools=[self.tool()], stream=True, **asked)
        finals = []
        for stream in runner:
            for event in stream:
                pass
            finals.append(stream.get_final_message())
        self.assertEqual([final.stop_reason for final in finals], ["tool_use", "end_turn"])
        self.ended(finals[-1])

    def test_async(self):
        @beta_async_tool
        async def weather(city: str, days: int) -> str:
            """Tells the weather."""
            return self.weather.tell(city, days)

        async def run():
            async with anthropic.AsyncAnthropic(base_url=self.server.url, api_key=KEY, max_retries=0) as api:
                asked = self.questions("Weather in Paris?")
                return await api.beta.messages.tool_runner(tools=[weather], **asked).until_done()

        self.ended(asyncio.run(run()))

    def test_two_turns(self):
        api, turns = self.client().beta.messages, []
        for question, text in (("Weather in Rome?", "It rains."), ("And in Paris?", "It is sunny.")):
            turns.append({"role": "user", "content": question})
            runner = api.tool_runner(model=MODEL, max_tokens=200, messages=turns, tools=[self.tool()])
            final = runner.until_done()
            self.assertEqual(final.content[0].text, text)
            turns.append({"role": "assistant", "content": final.content})
        self.assertEqual(self.weather.asked, [("Rome", 1), ("Paris", 2)])

    def test_a_thread_that_has_to_be_is_refused_by_name(self):
        thread = self.client().beta.messages.thread(model=MODEL, max_tokens=200)
        with self.assertRaises(anthropic.BadRequestError) as caught:
            thread.send({"role": "user", "content": "Hello"})
        details = caught.exception.body["error"]["details"]
        self.assertEqual(details, {"error_code": "thread_unsupported_request", "unsupported": ["thread"]})
        self.assertEqual(type(caught.exception).__name__, "ThreadUnsupportedRequestError")


if __name__ == "__main__":
    unittest.main()
