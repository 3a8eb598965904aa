"""`openai-agents`, over the API of responses, which is its default, and over that of chats."""

import asyncio
import unittest

from support import KEY, MODEL, call, needs, rule
from weather import CHAT, RESPONSES, RULES, TOM, Led, Owner

needs("agents")
from agents import (
    Agent,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    Runner,
    SQLiteSession,
    function_tool,
    set_default_openai_client,
    set_tracing_disabled,
)
from agents.models import get_default_model
from openai import AsyncOpenAI

# A trace would go to OpenAI.
set_tracing_disabled(True)
HANDED = [
    rule(call("transfer_to_second"), contains="somebody else"),
    rule("I am the second.", role="tool", contains="assistant"),
]


class Agents(Led):
    rules = [*HANDED, *RULES]
    options = ("--alias", get_default_model())

    def setUp(self):
        super().setUp()
        told = self.weather

        @function_tool
        def weather(city: str, days: int) -> str:
            """Tells the weather."""
            return told.tell(city, days)

        self.tool = weather

    def client(self):
        return AsyncOpenAI(base_url=f"{self.server.url}/v1", api_key=KEY, max_retries=0)

    def models(self):
        yield RESPONSES, OpenAIResponsesModel(MODEL, self.client())
        yield CHAT, OpenAIChatCompletionsModel(MODEL, self.client())

    def test_two_turns(self):
        for route, model in self.models():
            with self.part(route=route):
                agent = Agent(name="first", instructions="Be kind.", model=model, tools=[self.tool])
                first = Runner.run_sync(agent, "Weather in Rome?")
                self.assertEqual(first.final_output, "It rains.")
                turns = [*first.to_input_list(), {"role": "user", "content": "And in Paris?"}]
                second = Runner.run_sync(agent, turns)
                self.assertEqual(second.final_output, "It is sunny.")
                self.assertEqual(self.weather.asked, [("Rome", 1), ("Paris", 2)])
                usage = second.context_wrapper.usage
                self.assertEqual((usage.requests, usage.total_tokens), (2, usage.input_tokens + usage.output_tokens))
                self.assertEqual(self.asked(), {(route, 200): 4})

    def test_streamed_in_a_session(self):
        for route, model in self.models():
            with self.part(route=route):
                agent = Agent(name="first", model=model, tools=[self.tool])

                async def run():
                    session, texts = SQLiteSession("weather"), []
                    for question in ("Weather in Rome?", "And in Paris?", "Thanks"):
                        stream = Runner.run_streamed(agent, question, session=session)
                        async for _ in stream.stream_events():
                            pass
                        texts.append(stream.final_output)
                    session.close()
                    return texts

                self.assertEqual(asyncio.run(run()), ["It rains.", "It is sunny.", "You are welcome."])
                self.assertEqual(self.asked(), {(route, 200): 5})

    def test_a_schema(self):
        for route, model in self.models():
            with self.part(route=route):
                agent = Agent(name="first", model=model, output_type=Owner)
                self.assertEqual(Runner.run_sync(agent, "Whose pet?").final_output, TOM)

    def test_a_handoff(self):
        for route, model in self.models():
            with self.part(route=route):
                second = Agent(name="second", model=model)
                first = Agent(name="first", model=model, handoffs=[second])
                ended = Runner.run_sync(first, "May somebody else answer?")
                self.assertEqual((ended.final_output, ended.last_agent.name), ("I am the second.", "second"))

    def test_the_defaults(self):
        # Of its own default model it asks for little effort and few words.
        set_default_openai_client(self.client(), use_for_tracing=False)
        agent = Agent(name="first", tools=[self.tool])
        self.assertEqual(Runner.run_sync(agent, "Weather in Paris?").final_output, "It is sunny.")
        self.assertEqual(self.asked(), {(RESPONSES, 200): 2})


if __name__ == "__main__":
    unittest.main()
