// Requests to the server of this page.

export class ApiError extends Error {
  // problems: [{loc, msg}], loc the path of the refused value in the request
  constructor(problems) {
    super(problems.map(({ msg }) => msg).join(" "));
    this.problems = problems;
  }
}

async function answer(response) {
  const body = await response.json().catch(() => ({}));
  if (response.ok) return body;
  const { detail } = body;
  const problems = Array.isArray(detail) ? detail : [{ loc: [], msg: detail ?? `The server answered ${response.status}.` }];
  throw new ApiError(problems);
}

async function send(path, options) {
  let response;
  try {
    response = await fetch(`api/${path}`, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError([{ loc: [], msg: "The server of this page does not answer." }]);
  }
  return answer(response);
}

export const get = (path) => send(path, {});

export const post = (path, body, signal) =>
  send(path, { method: "POST", signal, headers: { "content-type": "application/json" }, body: JSON.stringify(body) });

export const postText = (path, text, signal) =>
  send(path, { method: "POST", signal, headers: { "content-type": "application/x-ndjson" }, body: text });

// Runs only the latest of the tasks it is given, after a pause; an earlier one is aborted and its answer dropped.
export class Latest {
  #timer = 0;
  #controller = new AbortController();

  run(task, pause_ms = 0) {
    clearTimeout(this.#timer);
    this.#controller.abort();
    const { signal } = (this.#controller = new AbortController());
    this.#timer = setTimeout(() => {
      task(signal).catch((error) => {
        if (!signal.aborted) throw error;
      });
    }, pause_ms);
  }
}
