"""`litellm`, whose own messages go back to the server as they are, through both APIs."""

import json
import os
import unittest

from support import KEY, MODEL, Scripted, call, needs, rule
from weather import CHAT, MESSAGES, PARAMETERS, RESPONSES, RULES, SKIES, TOM, Owner

needs("litellm")
# It would read its list of prices from the network.
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
import litellm

litellm.suppress_debug_info = True
FUNCTION = {"name": "weather", "description": "Tells the weather.", "parameters": PARAMETERS}
TOOLS = [{"type": "function", "function": FUNCTION}]
AS_A_TOOL = rule(call("json_tool_call", name="Tom", age=3, pet={"kind": "cat", "lives": 9}), contains="as a tool")


class Loops(Scripted):
    rules = [AS_A_TOOL, *RULES]

    def api(self, provider):
        base = self.server.url if provider == "anthropic" else f"{self.server.url}/v1"
        return {"model": f"{provider}/{MODEL}", "api_base": base, "api_key": KEY, "max_retries": 0}

    def check(self, provider, route, kept, stream):
        turns = []

        def ask():
            answer = litellm.completion(messages=turns, tools=TOOLS, stream=stream, **self.api(provider))
            answer = litellm.stream_chunk_builder(list(answer), messages=turns) if stream else answer
            usage = answer.usage
            self.assertEqual(usage.total_tokens, usage.prompt_tokens + usage.completion_tokens)
            return answer.choices[0]

        for question, said, arguments, text in (
            ("Weather in Rome?", "Let me see.", {"city": "Rome", "days": 1}, "It rains."),
            ("And in Paris?", "", {"city": "Paris", "days": 2}, "It is sunny."),
        ):
            turns.append({"role": "user", "content": question})
            choice = ask()
            message = choice.message
            self.assertEqual((choice.finish_reason, message.content or ""), ("tool_calls", said))
            made = message.tool_calls[0]
            self.assertEqual((made.function.name, json.loads(made.function.arguments)), ("weather", arguments))
            turns.append(kept(message))
            sky = SKIES[arguments["city"]]
            turns.append({"role": "tool", "tool_call_id": made.id, "name": "weather", "content": sky})
            choice = ask()
            self.assertEqual((choice.finish_reason, choice.message.content), ("stop", text))
            turns.append(kept(choice.message))
        self.assertEqual(self.asked(), {(route, 200): 4})

    def test_loops(self):
        for provider, route in (("openai", CHAT), ("hosted_vllm", CHAT), ("anthropic", MESSAGES)):
            for stream in (False, True):
                for kept in (lambda message: message, lambda message: message.model_dump()):
                    with self.part(provider=provider, stream=stream):
                        self.check(provider, route, kept, stream)

    def test_a_schema(self):
        for provider, route in (("openai", CHAT), ("anthropic", MESSAGES)):
            with self.part(provider=provider):
                # Of Anthropic's API it asks for a schema as a tool where it does not know the model.
                question = "Whose pet, as a tool?" if provider == "anthropic" else "Whose pet?"
                turns = [{"role": "user", "content": question}]
                answer = litellm.completion(messages=turns, response_format=Owner, **self.api(provider))
                self.assertEqual(Owner.model_validate_json(answer.choices[0].message.content), TOM)
                self.assertEqual(self.asked(), {(route, 200): 1})

    def test_responses(self):
        turns = [{"role": "user", "content": "Weather in Rome?"}]
        tools = [{"type": "function", **FUNCTION}]
        answer = litellm.responses(input=turns, tools=tools, **self.api("openai"))
        items = [item if isinstance(item, dict) else item.model_dump() for item in answer.output]
        self.assertEqual([item["type"] for item in items], ["message", "function_call"])
        # With every field that its own types have, `caller` and `namespace` among them.
        turns += items
        turns.append({"type": "function_call_output", "call_id": items[-1]["call_id"], "output": "rainy"})
        answer = litellm.responses(input=turns, tools=tools, **self.api("openai"))
        self.assertEqual(answer.output[0].content[0].text, "It rains.")
        self.assertEqual(self.asked(), {(RESPONSES, 200): 2})


if __name__ == "__main__":
    unittest.main()
