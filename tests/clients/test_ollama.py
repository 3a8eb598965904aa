"""The `ollama` package, sync and async, against running servers."""

import functools
import json
import unittest

import ollama
from support import KEY, QUESTION, Async, Scripted, Server, call, rule

OPTIONS = {"temperature": 0, "num_predict": 24}


def setUpModule():
    global server
    server = Server("--alias", "llama3.2")


def tearDownModule():
    for api in clients:
        api.close()
    assert server.stop() == 0


# All that were made: this package leaves its connections open.
clients = []


@functools.cache
def client(key=KEY, url=None):
    api = ollama.Client(host=url or server.url, headers={"authorization": f"Bearer {key}"})
    clients.append(api)
    return api


def chat(api, **options):
    return api.chat(**{"model": "stories", "messages": QUESTION, "options": OPTIONS, **options})


class Texts(unittest.TestCase):
    def test_chat(self):
        answer = chat(client())
        self.assertEqual((answer.model, answer.message.role, answer.done_reason), ("stories", "assistant", "length"))
        self.assertEqual((answer.done, answer.eval_count, answer.load_duration), (True, 24, 0))
        self.assertGreaterEqual(answer.total_duration, answer.prompt_eval_duration + answer.eval_duration)
        self.assertGreater(answer.eval_duration, 0)
        parts = list(chat(client(), stream=True))
        self.assertEqual("".join(part.message.content for part in parts), answer.message.content)
        self.assertEqual([part.done for part in parts], [False] * (len(parts) - 1) + [True])
        self.assertEqual(parts[-1].prompt_eval_count, answer.prompt_eval_count)

    def test_generate(self):
        ask = {"model": "stories:latest", "prompt": "Once upon a time", "raw": True, "options": OPTIONS}
        whole = client().generate(**ask)
        self.assertEqual((whole.model, whole.eval_count), ("stories:latest", 24))
        parts = client().generate(**ask, stream=True)
        self.assertEqual("".join(part.response for part in parts), whole.response)
        # A question without a conversation is one message of it.
        asked = client().generate(model="stories", prompt=QUESTION[0]["content"], options=OPTIONS)
        self.assertEqual(asked.response, chat(client()).message.content)

    def test_all_options_of_the_package(self):
        options = ollama.Options(num_ctx=128, num_keep=4, seed=3, num_predict=5, top_k=40, top_p=0.9, repeat_last_n=64,
                                 temperature=0.8, repeat_penalty=1.1, presence_penalty=0.5, frequency_penalty=0.5,
                                 num_thread=2, num_gpu=0, use_mmap=True, tfs_z=1.0, typical_p=1.0, mirostat=0,
                                 mirostat_tau=5.0, mirostat_eta=0.1, penalize_newline=True, stop=["@"])
        answers = [chat(client(), options=options, keep_alive="5m") for _ in range(2)]
        self.assertEqual(answers[0].message.content, answers[1].message.content)
        self.assertEqual(answers[0].eval_count, 5)

    def test_a_schema(self):
        schema = {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"],
                  "additionalProperties": False}
        answer = chat(client(), format=schema, options={"temperature": 0})
        self.assertIn(json.loads(answer.message.content), [{"n": 1}, {"n": 2}])

    def test_log_probabilities(self):
        answer = chat(client(), logprobs=True, top_logprobs=2)
        self.assertEqual(len(answer.logprobs), 24)
        self.assertEqual([len(one.top_logprobs) for one in answer.logprobs], [2] * 24)


class Models(unittest.TestCase):
    def test_list_show_and_ps(self):
        models = client().list().models
        self.assertEqual([model.model for model in models], ["stories:latest", "llama3.2:latest"])
        shown = client().show("llama3.2")
        self.assertEqual(shown.details, models[0].details)
        self.assertIn("completion", shown.capabilities)
        self.assertEqual(shown.modelinfo["general.architecture"], shown.details.family)
        running = client().ps().models[0]
        self.assertEqual((running.model, running.digest), ("stories:latest", models[0].digest))
        self.assertGreater(running.expires_at, models[0].modified_at)

    def test_vectors(self):
        answer = client().embed(model="stories", input=["Once upon a time", "A little girl"])
        self.assertEqual(len(answer.embeddings), 2)
        for vector in answer.embeddings:
            self.assertAlmostEqual(sum(x * x for x in vector), 1, places=5)
        old = client().embeddings(model="stories", prompt="Once upon a time")
        self.assertEqual(list(old.embedding), list(answer.embeddings[0]))

    def test_errors(self):
        with self.assertRaises(ollama.ResponseError) as caught:
            chat(client(), model="llama0")
        self.assertEqual((caught.exception.status_code, caught.exception.error), (404, "model 'llama0' not found"))
        for stream in (False, True):
            with self.assertRaises(ollama.ResponseError) as caught:
                for _ in client().pull("llama0", stream=stream):
                    pass
            self.assertIn("pull is not allowed here", caught.exception.error)
        for wrong in (lambda: client().delete("stories"), lambda: client().copy("stories", "x"),
                      lambda: client().create("x", from_="stories"), lambda: client().push("stories")):
            with self.assertRaises(ollama.ResponseError) as caught:
                wrong()
            self.assertEqual(caught.exception.status_code, 400)
            self.assertIn("is not supported", caught.exception.error)
        with self.assertRaises(ollama.ResponseError) as caught:
            chat(client(key="open"))
        self.assertEqual(caught.exception.status_code, 401)
        with self.assertRaises(ollama.ResponseError) as caught:
            chat(client(), options={"mirostat": 2})
        self.assertEqual(caught.exception.error, "options.mirostat: 2 is not supported")


def weather(city: str) -> str:
    """Tells the weather.

    Args:
      city: where
    """
    return f"It is sunny in {city}."


class Tools(Scripted):
    rules = (
        rule(call("weather", city="Rome"), contains="Rome"),
        rule([{"reasoning": "I have it."}, {"text": "Take a hat."}], role="tool", contains="sunny"),
    )

    def test_a_loop(self):
        for stream in (False, True):
            with self.part(stream=stream):
                messages = [{"role": "user", "content": "What is the weather in Rome?"}]
                first = self.ask(messages, stream)
                (asked,) = first.tool_calls
                self.assertEqual((asked.function.name, asked.function.arguments), ("weather", {"city": "Rome"}))
                result = weather(**asked.function.arguments)
                messages += [first, {"role": "tool", "tool_name": "weather", "content": result}]
                last = self.ask(messages, stream)
                self.assertEqual((last.thinking, last.content), ("I have it.", "Take a hat."))
                self.assertEqual(self.asked(), {("/api/chat", 200): 2})

    def ask(self, messages, stream):
        options = {"model": "local", "messages": messages, "tools": [weather], "think": True}
        api = client(url=self.server.url)
        if not stream:
            return api.chat(**options).message
        whole = ollama.Message(role="assistant", content="", thinking="")
        for part in api.chat(**options, stream=True):
            whole.content += part.message.content or ""
            whole.thinking += part.message.thinking or ""
            whole.tool_calls = [*(whole.tool_calls or []), *(part.message.tool_calls or [])]
        return whole


class AsyncTexts(Async):
    async def test_whole_and_streamed(self):
        api = ollama.AsyncClient(host=server.url, headers={"authorization": f"Bearer {KEY}"})
        whole = await chat(api)
        parts = [part.message.content async for part in await chat(api, stream=True)]
        self.assertEqual("".join(parts), whole.message.content)
        await api.close()


if __name__ == "__main__":
    unittest.main()
