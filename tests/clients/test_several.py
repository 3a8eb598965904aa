"""The libraries that people ask OpenAI's and Anthropic's APIs with, each with several models in one server."""

from several import NAMES, Several
from support import KEY, QUESTION, needs

needs("openai", "anthropic", "litellm", "langchain_openai", "pydantic_ai")

import anthropic
import litellm
import openai
from langchain_openai import ChatOpenAI
from pydantic_ai import Agent
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

HELLO = QUESTION[0]["content"]


class Libraries(Several):
    def setUp(self):
        self.base = f"{self.server.url}/v1"

    def test_openai(self):
        with openai.OpenAI(base_url=self.base, api_key=KEY, max_retries=0) as api:
            self.assertEqual([model.id for model in api.models.list()], list(NAMES))

            def chat(name):
                made = api.chat.completions.create(model=name, messages=QUESTION)
                self.assertEqual(made.model, name)
                return made.choices[0].message.content

            def streamed(name):
                parts = api.chat.completions.create(model=name, messages=QUESTION, stream=True)
                return "".join(part.choices[0].delta.content or "" for part in parts if part.choices)

            self.alternate(chat)
            self.alternate(streamed)
            self.alternate(lambda name: api.responses.create(model=name, input=HELLO).output_text)
            with self.assertRaisesRegex(openai.NotFoundError, "fourth"):
                chat("fourth")

    def test_anthropic(self):
        with anthropic.Anthropic(base_url=self.server.url, api_key=KEY, max_retries=0) as api:
            ask = {"messages": QUESTION, "max_tokens": 64}
            self.assertEqual([model.id for model in api.models.list()], list(NAMES))
            self.alternate(lambda name: api.messages.create(model=name, **ask).content[0].text)

            def streamed(name):
                with api.messages.stream(model=name, **ask) as stream:
                    return "".join(stream.text_stream)

            self.alternate(streamed)

    def test_litellm(self):
        def ask(name):
            made = litellm.completion(
                model=f"openai/{name}", messages=QUESTION, api_base=self.base, api_key=KEY, max_retries=0
            )
            return made.choices[0].message.content

        self.alternate(ask)

    def test_langchain(self):
        def ask(name):
            return ChatOpenAI(model=name, base_url=self.base, api_key=KEY, max_retries=0).invoke(HELLO).content

        self.alternate(ask)

    def test_pydantic_ai(self):
        provider = OpenAIProvider(base_url=self.base, api_key=KEY)
        self.alternate(lambda name: Agent(OpenAIChatModel(name, provider=provider)).run_sync(HELLO).output)
