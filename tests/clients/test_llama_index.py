"""llama-index' OpenAI-like model: chats, its agent with functions, and structured output."""

import asyncio
import unittest

from support import KEY, MODEL, call, needs, rule
from weather import CHAT, RULES, TOM, Led, Owner

needs("llama_index.llms.openai_like")
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.core.workflow import Context
from llama_index.llms.openai_like import OpenAILike

AS_A_TOOL = rule(call("Owner", name="Tom", age=3, pet={"kind": "cat", "lives": 9}), contains="as a tool")


class Models(Led):
    rules = [AS_A_TOOL, *RULES]

    def setUp(self):
        super().setUp()

        def weather(city: str, days: int) -> str:
            """Tells the weather."""
            return self.weather.tell(city, days)

        self.tool = FunctionTool.from_defaults(weather)

    def model(self, **options):
        base = {"api_base": f"{self.server.url}/v1", "api_key": KEY, "max_retries": 0}
        return OpenAILike(model=MODEL, is_chat_model=True, is_function_calling_model=True, **base, **options)

    def test_chats(self):
        turns = [ChatMessage(role="user", content="Hello")]
        answer = self.model().chat(turns)
        self.assertEqual(answer.message.content, "Good day to you.")
        self.assertEqual(answer.raw.choices[0].finish_reason, "stop")
        pieces = list(self.model().stream_chat(turns))
        self.assertEqual("".join(piece.delta for piece in pieces), "Good day to you.")
        self.assertEqual(self.asked(), {(CHAT, 200): 2})

    def test_agents(self):
        for streaming in (True, False):
            with self.part(streaming=streaming):

                async def run():
                    agent = FunctionAgent(
                        tools=[self.tool], llm=self.model(), system_prompt="Be kind.", streaming=streaming
                    )
                    context = Context(agent)
                    return [str(await agent.run(question, ctx=context)) for question in (
                        "Weather in Rome?", "And in Paris?", "Thanks",
                    )]

                self.assertEqual(asyncio.run(run()), ["It rains.", "It is sunny.", "You are welcome."])
                self.assertEqual(self.weather.asked, [("Rome", 1), ("Paris", 2)])
                self.assertEqual(self.asked(), {(CHAT, 200): 5})

    def test_structured_output(self):
        answer = self.model().as_structured_llm(Owner).complete("Whose pet, as a tool?")
        self.assertEqual(answer.raw, TOM)
        held = self.model(should_use_structured_outputs=True).as_structured_llm(Owner)
        self.assertEqual(held.complete("Whose pet?").raw, TOM)
        self.assertEqual(self.asked(), {(CHAT, 200): 2})


if __name__ == "__main__":
    unittest.main()
