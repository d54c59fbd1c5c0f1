// The client as an app configures it, and what the scenarios share.
import { ApiError, fal, ValidationError } from "@fal-ai/client";

export { fal };
export const params = JSON.parse(process.env.SCENARIO);

fal.config({
  proxyUrl: { url: params.url, when: "always" },
  ...(params.credentials ? { credentials: params.credentials } : {}),
});

/** Return what an app can see of the error with which `promise` rejects. */
export async function failure(promise) {
  try {
    await promise;
  } catch (error) {
    return {
      name: error.name,
      message: error.message,
      status: error.status,
      body: error.body,
      requestId: error.requestId,
      timeoutType: error.timeoutType,
      isApiError: error instanceof ApiError,
      isValidationError: error instanceof ValidationError,
      isUserTimeout: error.isUserTimeout,
      fieldErrors: error.fieldErrors,
      promptErrors: error.getFieldErrors?.("prompt"),
    };
  }
  throw new Error("no error where one was expected");
}

/** Resolve when the test says that the scenario may go on. */
export function toldToGoOn() {
  return new Promise((resolve) => {
    process.stdin.once("data", () => {
      process.stdin.pause(); // or a later line would be lost before anyone listens
      resolve();
    });
    process.stdin.resume();
  });
}

/** Collect every event of a stream in order. */
export async function collect(stream) {
  const events = [];
  stream.on("data", (event) => events.push(event));
  const last = await stream.done();
  return { events, last, requestId: stream.requestId };
}
