"""langchain's models of both APIs: bound tools, structured output, and its agent."""

import unittest

from support import KEY, MODEL, call, needs, rule
from weather import CHAT, MESSAGES, RESPONSES, RULES, SKIES, TOM, Led, Owner

needs("langchain", "langchain_openai", "langchain_anthropic")
from langchain.agents import create_agent
from langchain_anthropic import ChatAnthropic
from langchain_core.messages import HumanMessage, SystemMessage
from langchain_core.tools import StructuredTool
from langchain_openai import ChatOpenAI

# Where a schema is asked for as a tool, a call is the answer.
AS_A_TOOL = rule(call("Owner", name="Tom", age=3, pet={"kind": "cat", "lives": 9}), contains="as a tool")


class Models(Led):
    rules = [AS_A_TOOL, *RULES]

    def setUp(self):
        super().setUp()
        told = "Tells the weather."

        def weather(city: str, days: int) -> str:
            return self.weather.tell(city, days)

        self.tool = StructuredTool.from_function(weather, name="weather", description=told)

    def models(self):
        """Each model, with the route that it asks."""
        options = {"model": MODEL, "api_key": KEY, "max_retries": 0}
        openai = {"base_url": f"{self.server.url}/v1", **options}
        yield CHAT, ChatOpenAI(**openai)
        yield RESPONSES, ChatOpenAI(use_responses_api=True, **openai)
        yield RESPONSES, ChatOpenAI(use_responses_api=True, output_version="v1", **openai)
        yield MESSAGES, ChatAnthropic(base_url=self.server.url, **options)

    def loop(self, ask, route):
        turns = [SystemMessage("Be kind.")]
        for question, arguments, text in (
            ("Weather in Rome?", {"city": "Rome", "days": 1}, "It rains."),
            ("And in Paris?", {"city": "Paris", "days": 2}, "It is sunny."),
        ):
            turns.append(HumanMessage(question))
            message = ask(turns)
            self.assertEqual([(made["name"], made["args"]) for made in message.tool_calls], [("weather", arguments)])
            result = self.tool.invoke({**message.tool_calls[0], "type": "tool_call"})
            self.assertEqual(result.content, SKIES[arguments["city"]])
            turns += [message, result]
            message = ask(turns)
            self.assertEqual((message.text, message.tool_calls), (text, []))
            turns.append(message)
        self.assertEqual(self.asked(), {(route, 200): 4})

    def test_bound_tools(self):
        for route, model in self.models():
            with self.part(model=type(model).__name__, route=route):
                self.loop(model.bind_tools([self.tool]).invoke, route)

    def test_bound_tools_streamed(self):
        for route, model in self.models():
            with self.part(model=type(model).__name__, route=route):
                bound = model.bind_tools([self.tool])

                def ask(turns):
                    pieces = list(bound.stream(turns))
                    return sum(pieces[1:], start=pieces[0])

                self.loop(ask, route)

    def test_usage(self):
        for route, model in self.models():
            with self.part(model=type(model).__name__, route=route):
                usage = model.invoke("Hello").usage_metadata
                self.assertEqual(usage["total_tokens"], usage["input_tokens"] + usage["output_tokens"])
                self.assertGreater(usage["output_tokens"], 0)

    def test_structured_output(self):
        for route, model in self.models():
            with self.part(model=type(model).__name__, route=route):
                self.assertEqual(model.with_structured_output(Owner, method="json_schema").invoke("Whose pet?"), TOM)
                held = model.with_structured_output(Owner, method="function_calling")
                self.assertEqual(held.invoke("Whose pet, as a tool?"), TOM)
                self.assertEqual(self.asked(), {(route, 200): 2})

    def test_an_agent(self):
        for route, model in self.models():
            with self.part(model=type(model).__name__, route=route):
                agent = create_agent(model, [self.tool], system_prompt="Be kind.")
                state = agent.invoke({"messages": [HumanMessage("Weather in Rome?")]})
                self.assertEqual(state["messages"][-1].text, "It rains.")
                state = agent.invoke({"messages": [*state["messages"], HumanMessage("And in Paris?")]})
                self.assertEqual(state["messages"][-1].text, "It is sunny.")
                self.assertEqual(self.weather.asked, [("Rome", 1), ("Paris", 2)])
                self.assertEqual(self.asked(), {(route, 200): 4})


if __name__ == "__main__":
    unittest.main()
