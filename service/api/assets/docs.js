// Starts Swagger UI. In a file of its own, because the page's policy allows no script inside it.
SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#swagger-ui",
  layout: "BaseLayout",
  deepLinking: true,
  defaultModelsExpandDepth: 0,
  validatorUrl: null, // or it would send the description to a validator elsewhere
});
