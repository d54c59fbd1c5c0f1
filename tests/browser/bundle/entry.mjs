export { ApiError, ValidationError, createFalClient, fal } from "@fal-ai/client";
