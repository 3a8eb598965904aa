"""The `openai` package, sync and async, against a running server."""

import unittest

import openai
from support import KEY, QUESTION, Async, Server


def setUpModule():
    global server
    server = Server("--alias", "gpt-4o")


def tearDownModule():
    assert server.stop() == 0


def client(**options):
    return openai.OpenAI(base_url=f"{server.url}/v1", **{"api_key": KEY, "max_retries": 0, **options})


def async_client():
    return openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0)


def ask(api, **options):
    return api.chat.completions.create(
        **{"model": "stories", "messages": QUESTION, "temperature": 0, "max_completion_tokens": 24, **options}
    )


class Chat(unittest.TestCase):
    def test_whole(self):
        answer = ask(client())
        self.assertEqual((answer.object, answer.model, len(answer.choices)), ("chat.completion", "stories", 1))
        choice = answer.choices[0]
        self.assertEqual((choice.finish_reason, choice.message.role), ("length", "assistant"))
        self.assertGreater(len(choice.message.content), 20)
        self.assertEqual(answer.usage.completion_tokens, 24)
        self.assertEqual(answer.usage.total_tokens, answer.usage.prompt_tokens + 24)
        self.assertTrue(answer._request_id.startswith("req_"))

    def test_streamed(self):
        whole = ask(client()).choices[0].message.content
        stream = ask(client(), stream=True, stream_options={"include_usage": True})
        chunks = list(stream)
        self.assertEqual(chunks[0].choices[0].delta.role, "assistant")
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        self.assertEqual(text, whole)
        reasons = [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices]
        self.assertEqual([reason for reason in reasons if reason], ["length"])
        self.assertEqual(chunks[-1].usage.completion_tokens, 24)
        self.assertTrue(all(chunk.usage is None for chunk in chunks[:-1]))

    def test_cached_tokens(self):
        question = [{"role": "user", "content": "Tell me of the green dragon and his seven little friends. " * 8}]
        first = ask(client(), messages=question).usage
        self.assertLess(first.prompt_tokens_details.cached_tokens, 8)
        again = ask(client(), messages=question, n=2).usage
        self.assertEqual(again.prompt_tokens, first.prompt_tokens)
        # All but the last token were, and are told in whole pages of 64.
        told = (first.prompt_tokens - 1) // 64 * 64
        self.assertGreater(told, 0)
        self.assertEqual(again.prompt_tokens_details.cached_tokens, told)

    def test_stream_helper(self):
        # One that ends by itself: the helper takes a cut text for an error.
        with client().chat.completions.stream(model="stories", messages=QUESTION, temperature=0) as stream:
            kinds = [event.type for event in stream]
            final = stream.get_final_completion()
        self.assertIn("content.delta", kinds)
        self.assertIn("content.done", kinds)
        self.assertEqual(final.choices[0].finish_reason, "stop")

    def test_several_texts_with_a_seed(self):
        texts = [
            [choice.message.content for choice in ask(client(), n=3, temperature=1, seed=seed).choices]
            for seed in (7, 7, -8)
        ]
        self.assertEqual(texts[0], texts[1])
        self.assertNotEqual(texts[0], texts[2])
        self.assertEqual(len(set(texts[0])), 3)

    def test_stops(self):
        whole = ask(client()).choices[0].message.content
        word = whole.split()[4]
        choice = ask(client(), stop=[word, "\x00"]).choices[0]
        self.assertEqual((choice.message.content, choice.finish_reason), (whole[: whole.index(word)], "stop"))

    def test_an_answer_that_has_begun(self):
        whole = ask(client()).choices[0].message.content
        begun = whole[: whole.index(" ", 20)]
        messages = [*QUESTION, {"role": "assistant", "content": begun}]
        body = {"continue_final_message": True, "add_generation_prompt": False}
        rest = ask(client(), messages=messages, max_completion_tokens=8, extra_body=body).choices[0].message.content
        self.assertTrue(whole.startswith(begun + rest), (whole, begun, rest))
        # Another turn, as in the service: of this model, the answer to its own words.
        again = ask(client(), messages=messages).choices[0].message.content
        said = ask(client(), messages=[{"role": "user", "content": begun}]).choices[0].message.content
        self.assertEqual(again, said)

    def test_bias_and_penalties(self):
        api = client()
        whole = ask(api).choices[0].message.content
        first = ask(api, max_completion_tokens=1).choices[0].message.content
        ids = api.post("/../tokenize", body={"content": first}, cast_to=object)["tokens"]
        banned = ask(api, logit_bias={str(ids[0]): -100}).choices[0].message.content
        self.assertNotEqual(banned, whole)
        long = {"max_completion_tokens": 200, "extra_body": {"ignore_eos": True}}
        plain = ask(api, **long).choices[0].message.content
        penalised = ask(api, frequency_penalty=2, presence_penalty=2, **long).choices[0].message.content
        self.assertNotEqual(penalised, plain)

    def test_own_samplers(self):
        extra = {"top_k": 1, "min_p": 0.1, "repeat_penalty": 1.0, "stop_token_ids": [5]}
        text = ask(client(), temperature=1, top_p=0.9, extra_body=extra).choices[0].message.content
        self.assertEqual(text, ask(client(), extra_body={"stop_token_ids": [5]}).choices[0].message.content)

    def test_errors(self):
        with self.assertRaises(openai.NotFoundError) as caught:
            ask(client(), model="gpt-5")
        self.assertEqual(caught.exception.code, "model_not_found")
        with self.assertRaises(openai.BadRequestError) as caught:
            ask(client(), temperature=-1)
        self.assertEqual((caught.exception.param, caught.exception.type), ("temperature", "invalid_request_error"))
        with self.assertRaises(openai.BadRequestError) as caught:
            ask(client(), messages=[{"role": "user", "content": "cat " * 2000}])
        self.assertEqual(caught.exception.code, "context_length_exceeded")
        with self.assertRaises(openai.AuthenticationError):
            ask(client(api_key="open"))

    def test_leaving_a_stream(self):
        api = client()
        for _ in range(5):
            stream = ask(api, stream=True, max_completion_tokens=400)
            next(iter(stream))
            stream.close()
        self.assertEqual(ask(api, model="gpt-4o").choices[0].finish_reason, "length")


class AsyncChat(Async):
    async def test_whole_and_streamed(self):
        async with async_client() as api:
            whole = (await ask(api)).choices[0].message.content
            stream = await ask(api, stream=True)
            text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
            self.assertEqual(text, whole)

    async def test_side_by_side(self):
        import asyncio

        async with async_client() as api:
            answers = await asyncio.gather(*(ask(api, max_completion_tokens=20 + i) for i in range(24)))
            texts = [answer.choices[0].message.content for answer in answers]
            for shorter, longer in zip(texts, texts[1:]):
                self.assertTrue(longer.startswith(shorter))


class Completions(unittest.TestCase):
    def test_whole_and_streamed(self):
        options = {"model": "stories", "prompt": "Once upon a time", "max_tokens": 24, "temperature": 0}
        whole = client().completions.create(**options)
        self.assertEqual(whole.choices[0].text, ask(client()).choices[0].message.content)
        stream = client().completions.create(stream=True, stream_options={"include_usage": True}, **options)
        chunks = list(stream)
        self.assertEqual("".join(chunk.choices[0].text for chunk in chunks if chunk.choices), whole.choices[0].text)
        self.assertEqual(chunks[-1].usage.completion_tokens, 24)

    def test_many_prompts(self):
        answer = client().completions.create(
            model="stories", prompt=["Once upon a time", "One day"], n=2, max_tokens=4, temperature=0
        )
        self.assertEqual([choice.index for choice in answer.choices], [0, 1, 2, 3])
        self.assertEqual(answer.choices[0].text, answer.choices[1].text)
        self.assertNotEqual(answer.choices[0].text, answer.choices[2].text)


def respond(api, method="create", **options):
    call = getattr(api.responses, method)
    return call(**{"model": "stories", "input": "Once upon a time", "temperature": 0, "max_output_tokens": 24, **options})


class Responses(unittest.TestCase):
    def test_whole(self):
        answer = respond(client(), metadata={"a": "b"})
        self.assertEqual(answer.output_text, ask(client()).choices[0].message.content)
        self.assertEqual((answer.status, answer.incomplete_details.reason), ("incomplete", "max_output_tokens"))
        self.assertEqual((answer.output[0].type, answer.output[0].role), ("message", "assistant"))
        self.assertEqual((answer.usage.output_tokens, answer.metadata), (24, {"a": "b"}))

    def test_events(self):
        events = list(respond(client(), stream=True))
        kinds = [event.type.removeprefix("response.") for event in events]
        self.assertEqual(kinds[:4], ["created", "in_progress", "output_item.added", "content_part.added"])
        self.assertEqual(kinds[-4:], ["output_text.done", "content_part.done", "output_item.done", "incomplete"])
        self.assertEqual(set(kinds[4:-4]), {"output_text.delta"})
        self.assertEqual([event.sequence_number for event in events], list(range(len(events))))
        text = "".join(event.delta for event in events[4:-4])
        self.assertEqual((events[-4].text, events[-1].response.output_text), (text, text))
        self.assertEqual(text, respond(client()).output_text)

    def test_stream_helper(self):
        # One that ends by itself: the model's own end of a text.
        with client().responses.stream(model="stories", input="Once upon a time", temperature=0) as stream:
            for event in stream:
                pass
            final = stream.get_final_response()
        self.assertEqual(final.status, "completed")
        self.assertGreater(len(final.output_text), 100)

    def test_items(self):
        part = {"type": "input_text", "text": "Once upon a time"}
        answer = respond(client(), input=[{"type": "message", "role": "user", "content": [part]}])
        self.assertEqual(answer.output_text, respond(client()).output_text)
        turns = [
            {"role": "user", "content": "Hello"},
            {"type": "message", "id": "msg_1", "status": "completed", "role": "assistant",
             "content": [{"type": "output_text", "text": "Hi.", "annotations": []}]},
            {"role": "user", "content": "Once upon a time"},
        ]
        self.assertEqual(respond(client(), input=turns).output_text, answer.output_text)

    def test_errors(self):
        with self.assertRaises(openai.NotFoundError) as caught:
            respond(client(), previous_response_id="resp_1")
        self.assertIn("previous_response_id", caught.exception.message)
        for wrong in ({"conversation": "conv_1"}, {"background": True}, {"input": []}):
            with self.assertRaises(openai.BadRequestError) as caught:
                respond(client(), **wrong)
            self.assertIn(next(iter(wrong)), caught.exception.message)


class AsyncResponses(Async):
    async def test_whole_and_streamed(self):
        async with async_client() as api:
            whole = (await respond(api)).output_text
            stream = await respond(api, stream=True)
            text = "".join([event.delta async for event in stream if event.type == "response.output_text.delta"])
            self.assertEqual(text, whole)


class Embeddings(unittest.TestCase):
    def test_vectors(self):
        texts = ["A cat sat on a mat.", "A cat sat on the mat.", "7 8 9"]
        answer = client().embeddings.create(model="stories", input=texts)
        vectors = [item.embedding for item in answer.data]
        for vector in vectors:
            self.assertAlmostEqual(sum(x * x for x in vector), 1, places=4)
        near, far = (sum(a * b for a, b in zip(vectors[0], other)) for other in vectors[1:])
        self.assertGreater(near, far)
        self.assertIn("mean", answer.pooling)
        self.assertEqual(answer.usage.prompt_tokens, answer.usage.total_tokens)
        plain = client().embeddings.create(model="stories", input=texts[0], encoding_format="float")
        self.assertEqual([round(x, 6) for x in plain.data[0].embedding], [round(x, 6) for x in vectors[0]])
        with self.assertRaises(openai.BadRequestError):
            client().embeddings.create(model="stories", input="x", dimensions=3)


class Models(unittest.TestCase):
    def test_list(self):
        self.assertEqual([model.id for model in client().models.list()], ["stories", "gpt-4o"])
        self.assertEqual(client().models.retrieve("stories").owned_by, "backstop")
        with self.assertRaises(openai.NotFoundError):
            client().models.retrieve("gpt-5")


if __name__ == "__main__":
    unittest.main()
