"""pydantic-ai's agents over the three APIs: tools, outputs, and histories that it keeps."""

import asyncio
import unittest

from support import KEY, MODEL, call, needs, rule
from weather import CHAT, MESSAGES, RESPONSES, RULES, TOM, Led, Owner

needs("pydantic_ai")
from pydantic_ai import Agent, NativeOutput, PromptedOutput
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.anthropic import AnthropicProvider
from pydantic_ai.providers.openai import OpenAIProvider

# An output that is no text is asked for as a tool of this name.
FINAL = rule(call("final_result", name="Tom", age=3, pet={"kind": "cat", "lives": 9}), contains="as a tool")
# A name by which the package knows a model that thinks: it asks for what it thought in a sealed form.
THINKING = "gpt-5"


class Agents(Led):
    rules = [FINAL, *RULES]
    options = ("--alias", THINKING)

    def models(self):
        openai = OpenAIProvider(base_url=f"{self.server.url}/v1", api_key=KEY)
        yield CHAT, OpenAIChatModel(MODEL, provider=openai)
        yield RESPONSES, OpenAIResponsesModel(MODEL, provider=openai)
        yield RESPONSES, OpenAIResponsesModel(THINKING, provider=openai)
        yield MESSAGES, AnthropicModel(MODEL, provider=AnthropicProvider(base_url=self.server.url, api_key=KEY))

    def agent(self, model, **options):
        def weather(city: str, days: int) -> str:
            """Tells the weather."""
            return self.weather.tell(city, days)

        return Agent(model, instructions="Be kind.", tools=[weather], **options)

    def test_two_turns(self):
        for route, model in self.models():
            with self.part(model=model.model_name, route=route):
                agent = self.agent(model)
                first = agent.run_sync("Weather in Rome?")
                self.assertEqual(first.output, "It rains.")
                second = agent.run_sync("And in Paris?", message_history=first.all_messages())
                self.assertEqual(second.output, "It is sunny.")
                self.assertEqual(self.weather.asked, [("Rome", 1), ("Paris", 2)])
                self.assertEqual(self.asked(), {(route, 200): 4})

    def test_two_turns_streamed(self):
        for route, model in self.models():
            with self.part(model=model.model_name, route=route):
                agent = self.agent(model)

                async def run():
                    history, texts = [], []
                    for question in ("Weather in Rome?", "And in Paris?"):
                        async with agent.run_stream(question, message_history=history) as stream:
                            texts.append(await stream.get_output())
                            history = stream.all_messages()
                    return texts

                # What stands before a call is taken for the answer where it is streamed.
                self.assertEqual(asyncio.run(run())[-1], "It is sunny.")
                self.assertIn(("Paris", 2), self.weather.asked)

    def test_outputs(self):
        for route, model in self.models():
            with self.part(model=model.model_name, route=route):
                kinds = [("Whose pet, as a tool?", Owner), ("Whose pet?", PromptedOutput(Owner))]
                if route != MESSAGES:
                    # Of Anthropic's models, it knows by their names which can do it.
                    kinds.append(("Whose pet?", NativeOutput(Owner)))
                for question, kind in kinds:
                    agent = Agent(model, output_type=kind)
                    first = agent.run_sync(question)
                    self.assertEqual(first.output, TOM)
                    self.assertEqual(agent.run_sync(question, message_history=first.all_messages()).output, TOM)
                self.assertEqual(self.asked(), {(route, 200): 2 * len(kinds)})


if __name__ == "__main__":
    unittest.main()
