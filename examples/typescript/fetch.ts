// What a script asks for itself, of a host that `fetch_allow` under [script] in orchestra.toml names; and waiting.
const pause = (milliseconds: number) => new Promise<void>((resolve) => setTimeout(resolve, milliseconds));

const pipeline = async () => {
  // A server that was only just started may need a moment.
  for (let attempt = 1; ; attempt++) {
    try {
      const answer = await fetch("https://api.example.com/v2/", { timeout: "5s" });
      console.log("the server answers", answer.status);
      return;
    } catch (error) {
      if (attempt === 3) {
        throw error;
      }
      await pause(200 * attempt);
    }
  }
};

export { pipeline };
