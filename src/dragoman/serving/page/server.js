// The adapter of the page on the server: it asks /v1/models, /v1/predict and /v1/corrections.

const MOST_TRIES = 5;

async function ask(path, content) {
  for (let tries = 1; ; tries++) {
    const headers = { "Content-Type": "application/json" };
    const token = sessionStorage.getItem("token");
    if (token) headers.Authorization = `Bearer ${token}`;
    const post = { method: "POST", headers, body: JSON.stringify(content) };
    const response = await fetch(path, content ? post : { headers }).catch(() => {
      throw new Error("the server does not answer");
    });
    const answer = await response.json().catch(() => ({}));
    if (response.ok) return answer;
    const { where = "", message = `the server answers ${response.status}` } = answer.error ?? {};
    if (tries < MOST_TRIES && response.status === 503) { // its queue is full
      const wait_s = Number(response.headers.get("Retry-After")) || 1;
      await new Promise((resume) => setTimeout(resume, 1000 * wait_s));
    } else if (tries < MOST_TRIES && response.status === 401) {
      const typed = prompt("This server asks for a token:");
      if (!typed) throw new Error(message);
      sessionStorage.setItem("token", typed.trim());
    } else {
      throw Object.assign(new Error(message), { where, status: response.status });
    }
  }
}

window.adapter = {
  isServer: true,
  describe: () => ask("v1/models"),
  predict: (request) => ask("v1/predict", request),
  correct: (correction) => ask("v1/corrections", correction).then(() => true, (error) => {
    if (error.status === 404 || error.status === 405) return false; // this server keeps none
    throw error;
  }),
};
